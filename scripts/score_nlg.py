#!/usr/bin/env python
"""Score generated texts against references, as the E2E challenge's official scorer or as the LoRA release's.

    python scripts/score_nlg.py PRED REF                    # E2E: BLEU, NIST, METEOR, ROUGE_L, CIDEr
    python scripts/score_nlg.py PRED REF --scorer webnlg    # BLEU, METEOR, TER (also for DART)

PRED: one text a line; an empty line is an empty prediction. REF: one reference a line, groups separated by an empty
line, in the predictions' order; without any empty line, one reference for each prediction. METEOR needs Java; name the
other metrics with --metrics to leave it out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dual_lora.metrics import e2e, nlg
from dual_lora.metrics.java import JavaError


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, stripped. Raises `ValueError` naming the file for a missing or damaged one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({error})") from None
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


def main() -> int:
    """Print the scores, four decimals or JSON; 2 after bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, metavar="PRED")
    parser.add_argument("references", type=Path, metavar="REF")
    parser.add_argument("--scorer", choices=["e2e", "webnlg", "dart"], default="e2e")
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="default: all of the scorer's")
    parser.add_argument("--variant", choices=["mteval", "python"], default="mteval", help="e2e: BLEU and NIST")
    parser.add_argument("--form", choices=["lora", "raw"], default="lora", help="webnlg, dart: text form")
    parser.add_argument("--json", action="store_true", help="print all digits as JSON")
    arguments = parser.parse_args()
    try:
        predictions, references = read_lines(arguments.predictions), read_groups(arguments.references)
        if arguments.scorer == "e2e":
            metrics = arguments.metrics or e2e.METRICS
            scores = e2e.score(predictions, references, metrics=metrics, variant=arguments.variant)
        else:
            scores = nlg.score(predictions, references, metrics=arguments.metrics or nlg.METRICS, form=arguments.form)
    except (ValueError, JavaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(scores, indent=1) if arguments.json else "\n".join(f"{k}: {v:.4f}" for k, v in scores.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
