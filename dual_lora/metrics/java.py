"""The Java programs behind METEOR, ROUGE-L and CIDEr: METEOR 1.5 and the Stanford PTB tokenizer, from pycocoevalcap."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap

# The same text and numbers under every locale: German writes 0,5 and Turkish lower-cases I to a letter without a dot.
_JAVA = ("java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
HOW_TO_INSTALL = "install a Java runtime (Debian: apt-get install default-jre-headless; conda: conda install openjdk)"


class JavaError(RuntimeError):
    """Java is missing, or one of its programs failed; the message has the end of its output and the fix."""


@functools.cache
def available() -> bool:
    """Whether a working `java` is on the path."""
    if shutil.which("java") is None:
        return False
    return subprocess.run(["java", "-version"], capture_output=True, check=False).returncode == 0


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Return each one-line text as the Stanford PTB tokenizer prints it: lower-cased tokens joined by blanks.

    Same program, options and layout of the input as pycocoevalcap's `PTBTokenizer`, which writes its input into its own
    package folder; that folder may be read-only, so it is not used.
    """
    jar = _folder("tokenizer") / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts"
        file.write_bytes("\n".join(texts).encode())
        command = [*_JAVA, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        lines = _run([*command, str(file)]).decode().split("\n")
    if len(lines) < len(texts):
        raise JavaError(f"the PTB tokenizer returned {len(lines)} lines for {len(texts)} texts")
    return lines[: len(texts)]


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return corpus METEOR 1.5 (0-1, English, `-norm`) of PTB-tokenized one-line texts.

    The text protocol is that of pycocoevalcap's `Meteor`, which asks for one item at a time over a pipe and never reads
    the program's messages. Here each of the two steps is one run: statistics of all items, then their aggregate.
    """
    command = [*_JAVA, "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    if not available():
        raise JavaError(f"METEOR needs Java, and no working `java` was found; {HOW_TO_INSTALL}")
    questions = [
        " ||| ".join(("SCORE", *group, prediction.replace("|||", "").replace("  ", " ")))
        for prediction, group in zip(predictions, references, strict=True)
    ]
    with subprocess.Popen(
        command, cwd=_folder("meteor"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        statistics = []
        try:
            for question in questions:
                process.stdin.write(f"{question}\n".encode())
                process.stdin.flush()
                statistics.append(process.stdout.readline().decode().strip())
            process.stdin.write(f"{' ||| '.join(['EVAL', *statistics])}\n".encode())
            process.stdin.close()
            scores = process.stdout.read().decode().split()  # one per item, then the aggregate
            return float(scores[len(questions)])
        except (OSError, ValueError, IndexError) as error:
            process.kill()
            raise JavaError(f"METEOR stopped after {len(statistics)} of {len(questions)} items ({error!r})") from None


def _folder(part: str) -> Path:
    return Path(next(iter(pycocoevalcap.__path__))) / part  # a package without __init__.py has no __file__


def _run(command: Sequence[str]) -> bytes:
    if not available():
        raise JavaError(f"no working `java` was found; {HOW_TO_INSTALL}")
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise JavaError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace')[-300:]}")
    return done.stdout
