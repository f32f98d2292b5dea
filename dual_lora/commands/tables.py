"""Write the tables that experiments/*.yaml define from the records of runs, with published numbers next to ours.

    python run.py tables                     # all tables; results/tables from committed records; results/report.html
    python run.py tables --check             # exit 1 with a diff if a committed table or README is stale
    python run.py tables --only table_glue
    python run.py tables --records FOLDER    # tables over other records, in results/local/tables
    python run.py tables --explain table_nlg "Dual LoRA" BLEU    # where a number comes from

An empty cell shows the GPU-hours of its runs, which `run.py bench gpu-hours` plans once.

results/report.html is the same to browse, in one file without a server: every table with each cell's runs, figures, a
page per run. Committed files (the page, results/tables, results/figures, and the parts of README.md and docs/*.md
between `<!-- table:NAME -->` and `<!-- /table -->`, and of `finding`) depend only on the records git tracks; `git add
results/records/ID.json` makes one count. Records that are only on this machine make tables and a page of their own in
results/local and are shown on the screen. The demo's records, and others on the sample data, are in no table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rich.console import Console

from dual_lora import page, shipped
from dual_lora.commands.parser import Parser
from dual_lora.config import ConfigError
from dual_lora.page import explain
from dual_lora.records.schema import Record
from dual_lora.report import formats, own_files, records, selection, terminal, workspace
from dual_lora.report.layout import TableView
from dual_lora.report.screen import comparison
from dual_lora.report.workspace import Workspace
from dual_lora.runs.garbage import uncollected


def options(parser: Parser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff if a file is stale")
    parser.add_argument("--only", action="append", default=[], metavar="TABLE", help="one table (may be repeated)")
    parser.add_argument(
        "--explain",
        nargs=3,
        metavar=("TABLE", "ROW", "COLUMN"),
        help="show where one number of a table, or of one of its experiments, comes from; write nothing",
    )
    parser.take_searchpath()
    parser.add_argument("--records", type=Path, metavar="FOLDER", help="use the records of another folder")
    parser.add_argument("--home", type=Path, metavar="FOLDER", default=shipped.home(), help="what holds results/")


@uncollected()  # records and what is shown of them stay to the end: a third of the time for thousands of them
def run(options: argparse.Namespace) -> int:
    """Return 0, or 1 (--check: something is stale). Raises `ValueError` for a file that cannot be used."""
    space, console = Workspace(options.home), terminal.console()
    if options.records is not None and not options.records.is_dir():
        raise ValueError(f"--records {options.records}: no such folder")
    if options.explain is not None:
        return _explain(space, options.records or space.records, options.explain, options.searchpath)
    if options.records is not None:
        return _other_records(space, options, console)
    views = space.views(space.committed_records(), options.only)
    refused = terminal.name_refused(space.refused(committed=options.check))
    files = space.committed_files(views, with_documents=not options.only)
    browsed = None if options.only else _page(space, views)
    if options.check:
        stale = [*space.stale(files, complete=not options.only), *_stale_page(space, browsed)]
        return refused or _check([*stale, *space.stale_figures(views), *space.stale_hours()])
    changed = workspace.save(files)
    for name, view in views.items():
        done = f"{sum(b.runs_done for b in view.blocks)} of {sum(b.runs_all for b in view.blocks)} runs"
        state = "written" if space.tables / f"{name}.md" in changed else "unchanged"
        print(f"{_from_here(space.tables / name)}.md .tex .csv: {done}, {state}")
    if browsed is not None:
        state = "written" if workspace.save({space.page: browsed}) else "unchanged"
        print(f"{_from_here(space.page)}: {space.page.stat().st_size / 1e6:.1f} MB, {state}")
    space.draw(views)
    _local(space, options.only, console)
    return refused


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _explain(space: Workspace, folder: Path, asked: Sequence[str], searchpath: str | None) -> int:
    table, row, column = asked
    held, refused = records.read_all(folder)
    whole = space.table_of(table)
    view = space.views(held, [whole], folder.parent / "predictions")[whole]
    if whole != table:
        view = replace(view, name=table, blocks=tuple(block for block in view.blocks if block.experiment == table))
    results = folder.parent if folder.name == "records" else shipped.results()
    shown = [space.experiment(block.experiment) for block in view.blocks]
    more, lacking = shipped.word_for(results), ""
    try:
        more += own_files.words(shown, searchpath, results / "runs")
    except ConfigError as error:
        lacking = f"\nWhat the commands lack: {error}"
    print("\n".join(explain.explain(view, space.experiments(), row, column, space.hours, more)), end=f"{lacking}\n")
    return terminal.name_refused(refused)


def _page(space: Workspace, views: Mapping[str, TableView]) -> str:
    """Return the page of what belongs to the repository; a demo's run, or one on sample data, never does."""
    held = [record for record in space.committed_records() if not selection.is_local_play(record)]
    made = page.document(space, views, held, space.refused(committed=True))
    there = space.page.read_text(encoding="utf-8") if space.page.exists() else ""
    return there if page.same(there, made) else made


def _stale_page(space: Workspace, text: str | None) -> list[str]:
    """Say that a page is not what it should be; its lines are too long to show."""
    if text is None or not space.page.exists() or space.page.read_text(encoding="utf-8") == text:
        return []
    return ["results/report.html is not what the committed records give\n"]


def _check(diffs: list[str]) -> int:
    for diff in diffs:
        print(diff, end="")
    if diffs:
        print(f"\n{len(diffs)} files differ from what the committed records give: run {shipped.program()} tables")
    return 1 if diffs else 0


def _other_records(space: Workspace, options: argparse.Namespace, console: Console) -> int:
    found, refused = records.read_all(options.records)
    code = terminal.name_refused(refused)
    views = space.views(found, options.only, options.records.parent / "predictions")
    if options.check:
        return code or _check(space.stale(workspace.table_files(views, space.tables), complete=False))
    workspace.save(workspace.table_files(views, space.local_tables))
    blocks = space.blocks(options.only)
    loose = workspace.in_no_table(found, blocks)
    for name, view in views.items():
        if options.only or workspace.has_any(blocks[name], found):
            console.print(*formats.on_screen(view), sep="\n")
            print(f"{space.local_tables / name}.md .tex .csv")
    if not options.only:
        _show_loose(loose, console)
        _local_page(space, page.document(space, views, found, refused))
    return code


def _local_page(space: Workspace, text: str) -> None:
    workspace.save({space.local_page: text})
    print(space.local_page)


def _local(space: Workspace, only: list[str], console: Console) -> None:
    """Show what the records that are only on this machine add."""
    committed = {record.run_id for record in space.committed_records()}
    held = space.all_records()
    added = [record for record in held if record.run_id not in committed]
    if not added:
        return
    tables = space.blocks(only)
    loose = workspace.in_no_table(added, tables)
    views = space.views(held, only, space.predictions)
    for name, blocks in tables.items():
        if not workspace.has_any(blocks, added):
            continue
        view = views[name]
        workspace.save(workspace.table_files({name: view}, space.local_tables))
        console.print(*formats.on_screen(view), sep="\n")
        print(f"with records that are not committed: {space.local_tables / name}.md .tex .csv\n")
    if not only:
        _local_page(space, page.document(space, views, held, space.refused(committed=False)))
    if not only:
        _show_loose(loose, console)


def _show_loose(loose: Sequence[Record], console: Console) -> None:
    """Compare the records that no experiment names: those of a demo, of sample data, of a sweep of one's own."""
    if loose:
        print("Records in no table (a demo, sample data, or settings that no experiment names):")
    ordered = sorted(loose, key=lambda one: (*_place(one), one.name("method") != "none", one.seed, _begun(one)))
    for _, group in groupby(ordered, key=_place):
        console.print(comparison(list(group)))


def _begun(record: Record) -> str:
    return str(record.origin.get("started") or "")


def _place(record: Record) -> tuple[str, ...]:
    """What has to agree before records are shown under each other."""
    protocol = record.identity["protocol"]
    source = str(record.identity.get("data", {}).get("source"))
    return (record.name("model"), record.name("task"), str(protocol.get("hash")), record.name("profile"), source)
