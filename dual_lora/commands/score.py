"""Score generated texts against references, as the E2E challenge's official scorer or as the LoRA release's.

    python run.py score PRED REF                    # E2E: BLEU, NIST, METEOR, ROUGE_L, CIDEr
    python run.py score PRED REF --scorer webnlg    # BLEU, METEOR, TER (also for DART)

PRED: one text a line; an empty line is an empty prediction. REF: one reference a line, groups separated by an empty
line, in the predictions' order; without any empty line, one reference for each prediction. METEOR needs Java; name the
other metrics with --metrics to leave it out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dual_lora.commands.parser import Parser, one_of
from dual_lora.metrics import e2e, nlg


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, stripped. Raises `ValueError` naming the file for a missing or damaged one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from None
    lines = [line.strip() for line in text.split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def read_groups(path: Path) -> list[list[str]]:
    """Return reference groups. Raises `ValueError` naming the line of an empty group."""
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if all(lines):
        return [[line] for line in lines]
    groups: list[list[str]] = [[]]
    for number, line in enumerate(lines, start=1):
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
        else:
            raise ValueError(f"{path}, line {number}: an empty group of references; each item needs at least one")
    return groups


def options(parser: Parser) -> None:
    parser.add_argument("predictions", type=Path, metavar="PRED")
    parser.add_argument("references", type=Path, metavar="REF")
    parser.add_argument("--scorer", type=one_of("e2e", "webnlg", "dart"), default="e2e", help="e2e, webnlg or dart")
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="default: all of the scorer's")
    parser.add_argument("--variant", type=one_of("mteval", "python"), default="mteval", help="e2e: BLEU and NIST")
    parser.add_argument("--form", type=one_of("lora", "raw"), default="lora", help="webnlg, dart: text form")
    parser.add_argument("--json", action="store_true", help="print all digits as JSON")


def run(options: argparse.Namespace) -> int:
    """Print the scores, four decimals or JSON. Raises `ValueError` for bad input, `JavaError` without Java."""
    predictions, references = read_lines(options.predictions), read_groups(options.references)
    if options.scorer == "e2e":
        metrics = options.metrics or e2e.METRICS
        scores = e2e.score(predictions, references, metrics=metrics, variant=options.variant)
    else:
        scores = nlg.score(predictions, references, metrics=options.metrics or nlg.METRICS, form=options.form)
    print(json.dumps(scores, indent=1) if options.json else "\n".join(f"{k}: {v:.4f}" for k, v in scores.items()))
    return 0
