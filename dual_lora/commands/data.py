"""Make the folder of data that the experiments name as $DUAL_LORA_DATA, from its public sources.

    python run.py data out=data                     # 110 MB: E2E, WebNLG, commonsense, GLUE, tokenizers
    python run.py data out=data only=e2e            # one part of it
    export DUAL_LORA_DATA=$PWD/data

Every file is checked against the sha256 that the committed records hold. A file that is there is checked and kept, so
the same command continues where it was stopped. Layout, sources and licences: docs/data.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from dual_lora.commands.parser import Parser, one_of

_PARTS = ("e2e", "webnlg_2017", "commonsense", "glue", "tokenizers")


def options(parser: Parser) -> None:
    folder = Path(os.environ.get("DUAL_LORA_DATA") or "data")
    parser.add_argument("--out", type=Path, default=folder, help="the folder; default: $DUAL_LORA_DATA, or data")
    text = f"one part (may be repeated): {', '.join(_PARTS)}"
    parser.add_argument("--only", type=one_of(*_PARTS), action="append", default=[], help=text)


def run(options: argparse.Namespace) -> int:
    """Return 0. Raises `DataError` for a file that cannot be had, or is not the published one."""
    from dual_lora.tasks.published_files import FILES, fetch

    wanted = tuple(file for file in FILES if not options.only or file.part in options.only)
    for number, (file, done) in enumerate(fetch(options.out, wanted), start=1):
        print(f"[{number}/{len(wanted)}] {done}: {file.name}", flush=True)
    print(f"export DUAL_LORA_DATA={shlex.quote(str(options.out.resolve()))}")
    return 0
