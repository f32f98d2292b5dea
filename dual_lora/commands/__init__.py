"""The command line: the first word chooses what is done; without one it is a run, or a sweep of runs.

A module of this folder is one command: its docstring is its help, `options` adds to its parser, `run` does the work and
returns the exit code. All of them are imported when they are called, so that help and tables load no torch.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

COMMANDS = {
    "run": "do a run, or a sweep of runs; the word may be omitted",
    "data": "make the folder of data that the experiments name, from its public sources",
    "tables": "write the tables that experiments define from the records, and results/report.html",
    "compare": "show two runs next to each other",
    "status": "show which runs of an experiment are done, running, failed or missing",
    "tune": "choose learning rates by validation scores, from the records of trials",
    "evaluate": "score a saved adapter, or a base model",
    "rescore": "score finished runs again from their kept predictions",
    "score": "score generated texts against references",
    "analyze": "measure a trained update: size, zeros, signs, ranks",
    "export": "write all records as tables, or what a run trained as a transformers checkpoint",
    "pack": "move the records of a sweep of many small runs into one file",
    "merge": "write the base with a saved adapter merged in, as a stock checkpoint",
    "export-lora": "write a saved Dual LoRA adapter as a LoRA adapter of a given rank",
    "exec": "run another program that can load Dual LoRA adapters then",
    "random-checkpoint": "write a checkpoint of random weights",
    "clean": "free the disk of what finished runs no longer need",
    "bench": "measure speed and memory",
}
OWN_PARSER = ("run", "bench", "exec")
# What `pip install "dual-lora[bench]"` brings, as Python names it: pyproject.toml.
BENCH_LIBRARIES = frozenset((
    "datasets", "deepspeed", "evaluate", "filelock", "gguf", "google", "hydra", "matplotlib", "nltk", "numpy",
    "omegaconf", "psutil", "pyarrow", "pycocoevalcap", "pydantic", "rich", "sacrebleu", "scipy", "sentencepiece",
    "sklearn", "submitit", "wandb", "yaml",
))  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; 2 for arguments, settings or files that cannot be used."""
    words = sys.argv[1:] if arguments is None else arguments
    undecoded = [word for word in words if any("\udc80" <= letter <= "\udcff" for letter in word)]
    if undecoded and arguments is None and not sys.flags.utf8_mode:
        # The locale is another's, such as ASCII: in Python's UTF-8 mode such a folder can be named in files too.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    _print_in_any_encoding()
    if undecoded:
        print(f"error: {undecoded[0]!r} is no text: a name whose bytes are not UTF-8; rename it", file=sys.stderr)
        return 2
    name, rest = _command(words)
    try:
        module = import_module(f"dual_lora.commands.{name.replace('-', '_')}")
        return _run(name, module, rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in BENCH_LIBRARIES:
            raise
        print(
            f"error: the package {missing} is missing; the suite's libraries come with: pip install "
            '"dual-lora[bench]" (in a checkout: pip install -e ".[bench]")',
            file=sys.stderr,
        )
        return 2


def _run(name: str, module: Any, words: list[str]) -> int:
    from dual_lora.config import ConfigError
    from dual_lora.config.environment import ignore_renamed_settings, launcher_around, leave_out_other_tools
    from dual_lora.records import disk

    in_group = words[:1] == ["--worker"] and "TORCHELASTIC_RUN_ID" in os.environ
    if name == "run" and not in_group and (launcher := launcher_around(os.environ)):
        rank, processes = os.environ.get("RANK", "?"), os.environ["WORLD_SIZE"]
        print(
            f"error: {launcher} started this as process {rank} of {processes}; the suite starts its processes itself: "
            "give the command alone, with launch=torchrun (or fsdp, deepspeed) "
            f"launch.num_gpus={os.environ.get('LOCAL_WORLD_SIZE', processes)}",
            file=sys.stderr,
        )
        return 2
    if foreign := leave_out_other_tools(os.environ, in_group=in_group):
        print(f"left out, as settings of other tools: {', '.join(foreign)}", file=sys.stderr)
    # A run or a benchmark works for hours: any other error there has to show its traceback.
    expected = (ConfigError,) if name in OWN_PARSER else (ValueError, RuntimeError, OSError)
    try:
        if name in OWN_PARSER:
            code = module.main(words)
        else:
            from dual_lora.commands.parser import Parser

            ignore_renamed_settings()
            parser = Parser(name, module.__doc__)
            module.options(parser)
            code = module.run(parser.parse(words))
        print(end="", flush=True)  # not sys.stdout.flush(): there may be none
        return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 128 + signal.SIGPIPE  # as a shell says of a program that ends so
    except expected as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        full = disk.shortage(error, Path.cwd())
        if full is None:
            raise
        print(f"error: {full}", file=sys.stderr)
        return 1


def _nobody_reads() -> bool:
    """Return whether whoever read the output has gone, as `| head` does once it has its lines; be quiet from now on."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
    return gone


def _print_in_any_encoding() -> None:
    """Show `?` for a character that the terminal's encoding lacks, instead of ending the command at its last line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook has put its own
            stream.reconfigure(errors="replace")


def _command(words: list[str]) -> tuple[str, list[str]]:
    return (words[0], words[1:]) if words and words[0] in COMMANDS else ("run", words)
