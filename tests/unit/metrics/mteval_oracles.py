"""What BLEU and NIST are compared with: the official Perl script, our rebuilding of it, and random sets for both."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from dual_lora.metrics.texts import check

Set = tuple[list[str], list[list[str]]]
REBUILT = Path(__file__).with_name("mteval_rebuilt.pl")
WORDS = (
    *(
        "the",
        "a",
        "pub",
        "Eagle",
        "near",
        "river.",
        "0",
        "0",
        "00",
        "5",
        "0.5",
        "1,000",
        "£20-25",
        "x-1",
        "3-4",
        "a.b",
        "..5",
    ),
    *(
        "É",
        "Café",
        "“so”",
        "日本",
        "a\xa0b",
        "&amp;",
        "&quot;",
        "&amp;lt;",
        "<b>",
        "(,)",
        "it's",
        "-",
        "'",
        "@#",
        "<skipped>",
    ),
)


def random_sets(number: int, seed: int, words: Sequence[str] = WORDS) -> Iterator[Set]:
    """Yield sets that differ in the numbers of references and the lengths of outputs; every group has a word."""
    chance = random.Random(seed)

    def text(least: int, most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(least, most)))

    def output(shape: str, group: list[str], other: list[str]) -> str:
        chosen = chance.choice(group).split()
        return {
            "empty": "",
            "short": " ".join(chosen[: len(chosen) // 2]),
            "whole": " ".join(chosen),
            "other": chance.choice(other),
            "long": " ".join(chosen + chosen) + " " + text(0, 9),
            "changed": " ".join(chance.choice(words) if chance.random() < 0.3 else word for word in chosen),
            "garbage": text(1, 12),
        }[shape]

    shapes = ("empty", "short", "whole", "other", "long", "changed", "garbage")
    for _ in range(number):
        most, equal = chance.choice((1, 2, 4, 12)), chance.random() < 0.25
        groups = []
        for _ in range(chance.randint(1, 7)):
            group = [text(1, chance.choice((2, 9))) for _ in range(most if equal else chance.randint(1, most))]
            if chance.random() < 0.3:
                group = [chance.choice((reference, group[0], "")) for reference in group]
            group[chance.randrange(len(group))] = text(1, 6) + " pub"
            groups.append(group)
        kept = chance.sample(shapes, chance.choice((1, 1, 2, len(shapes))))
        outputs = [output(chance.choice(kept), group, chance.choice(groups)) for group in groups]
        yield check(outputs, groups)


def rebuilt(sets: Sequence[Set]) -> list[tuple[float, float]]:
    """Return (BLEU, NIST) of each set by mteval_rebuilt.pl."""
    lines = []
    for predictions, groups in sets:
        for prediction, group in zip(predictions, groups, strict=True):
            lines += [f"segment\t{prediction}", *(f"reference\t{reference}" for reference in group)]
        lines.append("score\t")
    text = "".join(f"{line}\n" for line in lines).encode()
    done = subprocess.run(["perl", str(REBUILT)], input=text, capture_output=True, check=True)
    return [(float(bleu), float(nist)) for bleu, nist in map(str.split, done.stdout.decode().splitlines())]


def official(script: str | Path, predictions: Sequence[str], groups: Sequence[Sequence[str]], folder: Path) -> tuple:
    """Return (BLEU, NIST) of the whole official script, run on files in the E2E scorer's layout in an empty folder.

    Its option for the MetricsMATR campaign writes the scores with all digits; what it prints has four.
    """
    positions = range(max(map(len, groups)))
    references = [[group[position] if position < len(group) else "" for group in groups] for position in positions]
    for kind, documents in (("ref", references), ("tst", [predictions]), ("src", [[""] * len(predictions)])):
        lines = [f'<{kind}set setid="e2e" srclang="any" trglang="en">']
        for number, document in enumerate(documents):
            lines.append(f'<doc docid="test" genre="news" origlang="any" sysid="{kind}_{number}">\n<p>')
            lines += [f'<seg id="{segment}">{text}</seg>' for segment, text in enumerate(document, start=1)]
            lines.append("</p>\n</doc>")
        (folder / f"{kind}.sgm").write_text("\n".join([*lines, f"</{kind}set>"]), encoding="utf-8", newline="\n")
    command = ["perl", str(script), "-r", "ref.sgm", "-t", "tst.sgm", "-s", "src.sgm", "-f", "statistics"]
    done = subprocess.run([*command, "--metricsMATR-output"], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return tuple(float((folder / f"{name}-sys.scr").read_text().split("\t")[2]) for name in ("BLEU", "NIST"))
