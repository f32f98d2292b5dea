"""Where experiments, records, published numbers and tables are, and what belongs to the repository.

Committed tables (`results/tables`) depend on committed records only. Records that are only on this machine make tables
of their own in `results/local/tables`, together with the committed ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dual_lora import shipped
from dual_lora.config import legal_values
from dual_lora.records import evidence
from dual_lora.records.schema import Record
from dual_lora.report import (
    definition,
    documents,
    drawing,
    figures,
    formats,
    gpu_hours,
    latex,
    neighbours,
    records,
    selection,
)
from dual_lora.report.definition import Experiment
from dual_lora.report.figures import Figure
from dual_lora.report.findings import Findings
from dual_lora.report.gpu_hours import GpuHours
from dual_lora.report.layout import TableView
from dual_lora.report.records import Held
from dual_lora.report.table import Builder

FORMATS: Mapping[str, Callable[[TableView], str]] = {
    "md": formats.markdown,
    "tex": latex.latex,
    "csv": formats.tidy_csv,
}


@dataclass(frozen=True)
class Workspace:
    """A checkout of the project, or another folder with `results/`."""

    root: Path

    def _shipped(self, name: str) -> Path:
        """Return the folder of this workspace if it has experiments of its own, else the one that ships."""
        return (self.root / name) if (self.root / "experiments").is_dir() else shipped.folder(name)

    @property
    def records(self) -> Path:
        return self.root / "results" / "records"

    @property
    def predictions(self) -> Path:
        return self.root / "results" / "predictions"

    @property
    def tables(self) -> Path:
        return self.root / "results" / "tables"

    @property
    def figures(self) -> Path:
        return self.root / "results" / "figures"

    @property
    def page(self) -> Path:
        return self.root / "results" / "report.html"

    @property
    def local_page(self) -> Path:
        return self.root / "results" / "local" / "report.html"

    @property
    def local_tables(self) -> Path:
        return self.root / "results" / "local" / "tables"

    def experiments(self) -> dict[str, Experiment]:
        """Return the experiments by name. Raises `DefinitionError`."""
        return self._experiments

    def experiment(self, name: str) -> Experiment:
        """Return an experiment. Raises `DefinitionError`."""
        return definition.named(self.experiments(), name)

    def blocks(self, only: Sequence[str] = ()) -> dict[str, list[Experiment]]:
        """Return table name -> its blocks, of all tables or those named. Raises `DefinitionError`."""
        tables = definition.tables(self.experiments())
        for name in only:
            if self.table_of(name) != name:
                raise definition.DefinitionError(f"{name!r} is a block of table {self.table_of(name)!r}: name that")
        return {name: blocks for name, blocks in tables.items() if not only or name in only}

    def table_of(self, name: str) -> str:
        """Return the table of that name, or the first that shows the experiment of that name as a block.

        Raises `DefinitionError`.
        """
        tables = definition.tables(self.experiments())
        showing = (table for table, blocks in tables.items() if name in (block.name for block in blocks))
        found = name if name in tables else next(showing, None)
        if found is None:
            raise definition.DefinitionError(f"table {name!r} does not exist{legal_values(name, tables)}")
        return found

    def all_records(self) -> list[Record]:
        """Return every record on this machine that can be used."""
        return self._held.records()

    def committed_records(self) -> list[Record]:
        """Return those in files that git tracks (all, outside a repository). Raises `RecordError`."""
        return self._held.records(self._committed)

    def refused(self, *, committed: bool) -> list[str]:
        """Return why each of the other files is no record that can be used; with `committed` of those git tracks."""
        tracked = tuple(map(str, self._committed))
        return [text for text in self._held.refused if not committed or text.startswith(tracked)]

    @cached_property
    def hours(self) -> GpuHours:
        """What runs take, by results/benchmarks/gpu_hours.json. Raises `ValueError` if it cannot be read."""
        return gpu_hours.read(self._shipped("results/benchmarks"), self.experiments())

    def stale_hours(self) -> list[str]:
        """Say whether that file is older than what it is made of."""
        return gpu_hours.stale(self.hours, self._shipped("configs"))

    @cached_property
    def _experiments(self) -> dict[str, Experiment]:
        return definition.read_all(self._shipped("experiments"))

    @cached_property
    def _held(self) -> Held:
        return records.read_each(evidence.files(self.records))

    @cached_property
    def _committed(self) -> list[Path]:
        return records.committed(self.records) if self.records.is_dir() else []

    def views(
        self, held: Sequence[Record], only: Sequence[str] = (), predictions: Path | None = None
    ) -> dict[str, TableView]:
        """Return the tables over the given records. predictions: their folder of replies; None: what is committed."""
        alone = neighbours.alone(held)
        archived = records.archived(predictions or self.predictions, committed=predictions is None)
        published, configs = self._shipped("results/published"), self._shipped("configs")
        return {
            name: Builder(published, configs, alone, self.hours, archived).build(name, blocks, held)
            for name, blocks in self.blocks(only).items()
        }

    def committed_files(self, views: Mapping[str, TableView], *, with_documents: bool) -> dict[Path, str]:
        """Return path -> text of every file the committed records determine."""
        files = table_files(views, self.tables)
        found = Findings(views, self.experiments())
        for path in documents.documents(self.root) if with_documents else []:
            text, where = path.read_text(encoding="utf-8"), path.relative_to(self.root).as_posix()
            filled = documents.fill_findings(documents.fill_tables(text, views, where), found, where)
            if "<!-- table:" in text or "<!-- finding:" in text:
                files[path] = filled
        return files

    def stale(self, files: Mapping[Path, str], *, complete: bool) -> list[str]:
        """Return a unified diff for each file that is not what it should be; with `complete`, also for leftovers."""
        wanted = dict(files)
        if complete and self.tables.is_dir():
            leftovers = {path for extension in FORMATS for path in self.tables.glob(f"*.{extension}")}
            wanted |= dict.fromkeys(leftovers - files.keys(), "")
        diffs = []
        for path, text in sorted(wanted.items()):
            current = path.read_text(encoding="utf-8") if path.exists() else ""
            if current != text:
                name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
                lines = difflib.unified_diff(
                    current.splitlines(keepends=True), text.splitlines(keepends=True), name, f"{name} (from records)"
                )
                diffs.append("".join(line if line.endswith("\n") else f"{line}\n" for line in lines))
        return diffs

    def draw(self, views: Mapping[str, TableView]) -> list[Path]:
        """Draw the figures of some tables and return their files; one without points is not drawn."""
        return [path for figure, path in self._drawn(views) if drawing.draw(figure, path)]

    def stale_figures(self, views: Mapping[str, TableView]) -> list[str]:
        """Say which figures of some tables are not drawn from what the tables hold."""
        stale = [path for figure, path in self._drawn(views) if figure.panels and not drawing.is_drawn(figure, path)]
        return [f"{path.relative_to(self.root).as_posix()} is not what the committed records give\n" for path in stale]

    def _drawn(self, views: Mapping[str, TableView]) -> list[tuple[Figure, Path]]:
        asked = (figure for view in views.values() for figure in figures.figures(view, self.experiments()))
        return [(figure, self.figures / f"{figure.name}.svg") for figure in asked]


def table_files(views: Mapping[str, TableView], folder: Path) -> dict[Path, str]:
    """Return path -> text of each table in each format."""
    return {folder / f"{name}.{end}": write(view) for name, view in views.items() for end, write in FORMATS.items()}


def save(files: Mapping[Path, str]) -> list[Path]:
    """Write the files whose text changed and return their paths."""
    changed = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    return changed


def in_no_table(held: Sequence[Record], tables: Mapping[str, Sequence[Experiment]]) -> list[Record]:
    """Return the records that no block of any table selects."""
    asked = selection.asked_by((experiment for blocks in tables.values() for experiment in blocks), held)
    return [record for record in held if not _is_in(record, asked[record.names])]


def has_any(blocks: Sequence[Experiment], held: Sequence[Record]) -> bool:
    """Whether a table with these blocks selects one of the records."""
    asked = selection.asked_by(blocks, held)
    return any(_is_in(record, asked[record.names]) for record in held)


def _is_in(record: Record, experiments: Iterable[Experiment]) -> bool:
    return not selection.is_local_play(record) and any(selection.in_sweep(record, one) for one in experiments)
