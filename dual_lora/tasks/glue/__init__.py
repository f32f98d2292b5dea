"""GLUE (Wang et al. 2018) with an encoder and a classification head; `task=glue/NAME`, NAME one of the nine.

Splits: `train` is the training set; `validation` and `test` are both the development set, because the labels of GLUE's
test sets are hidden and every published row is a development-set score. Label order is the hub's.

What the training loop does with it, so that one record has both the published and an honest choice of the epoch:

1. If `protocol.validation_fraction` is set (strict, restricted: 0.1), split the training set once
   (`dual_lora.tasks.splits.hold_out`): train on the first part, the second is the held-out part. Otherwise (paper)
   train on everything.
2. After every epoch (and after the last step) measure the development set and, if there is one, the held-out part:
   `dual_lora.evaluation.epoch_scores` has the callback that does it. It keeps logits and scores per epoch on disk, so
   the choice needs no saved weights and is made after training.
3. Report the development set's scores (`score`) at these checkpoints, all in `scores.measurements`, split "test":
   - `best_dev`: the epoch with the highest development score. The published way; optimistic by construction.
   - `best_heldout`: the epoch with the highest held-out score. Honest.
   - `last`: after the last epoch. Honest.
   The first epoch wins a tie; an undefined score counts as lowest. `protocol.checkpoint` says which one the headline
   shows, `protocol.also_report` which others are recorded.
4. A study chooses learning rates by the held-out part's own score (measurements with split "validation", checkpoint
   `best_heldout`), never by the development set.
5. Keep the trainable weights of the headline's epoch (`EpochScores(keep_weights=..., weights_of=...)`, or those of the
   last step), at `records.weights_file(folder, checkpoint)`: other runs start from those of MNLI (`runs.warm_start`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dual_lora.config import MNLI_STARTED, ConfigError, DataError, RunConfig, nearest
from dual_lora.metrics import glue as metrics
from dual_lora.tasks import files, unused
from dual_lora.tasks.base import ClassificationTask, Example, Head, Prompt, Reading, Score, Split
from dual_lora.tasks.glue.reading import read_hub, read_tsv
from dual_lora.tasks.glue.specs import HUB_REPOSITORY, HUB_REVISION, NO_MNLI_START, SPECS, Spec

SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "glue"
SCORING = "classify"


def build(config: RunConfig) -> Glue:
    """Return the task that `config.task.name` ("glue/rte") names, over `config.data`. Reads nothing yet."""
    name = config.task.name.removeprefix("glue/")
    if name not in SPECS:
        legal = ", ".join(f"glue/{known}" for known in SPECS)
        raise ConfigError(f"task.name={config.task.name!r}: legal are {legal}{nearest(name, SPECS)}")
    folder = None
    if config.data.source == "sample":
        folder = SAMPLE / SPECS[name].folder
    elif config.data.source == "local":
        folder = _local_folder(Path(str(config.data.dir)), SPECS[name])
    cold = config.task.name in MNLI_STARTED and config.init_from == "none" and config.protocol.name != "restricted"
    return Glue(SPECS[name], config.data.source, folder, (NO_MNLI_START,) if cold else ())


def _local_folder(root: Path, spec: Spec) -> Path:
    """DIR/glue/RTE, or DIR/RTE where `data.dir` is the GLUE download itself."""
    inside = root / "glue" / spec.folder
    return inside if inside.is_dir() or not (root / spec.folder).is_dir() else root / spec.folder


class Glue(ClassificationTask):
    """One GLUE task; see `dual_lora.tasks.base.ClassificationTask`."""

    scorings = (SCORING,)

    def __init__(self, spec: Spec, source: str, folder: Path | None, notes: tuple[str, ...] = ()) -> None:
        self.spec = spec
        self.name = f"glue/{spec.name}"
        self.labels = spec.labels
        self.unused = {**unused.UNUSED_BY_CLASSIFICATION, "task.subsets": (tuple(spec.development),)}
        self.head = Head("classification", num_labels=len(spec.labels) or 1, regression=not spec.labels)
        self.metrics = metrics.METRICS[spec.name]
        self._source, self._folder, self._own_notes = source, folder, notes
        self._read: dict[str, tuple[list[Example], dict[str, Any]]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing or different: fewer or more items than published, rows left out, no MNLI start."""
        notes = list(self._own_notes)
        if self._source == "sample":
            return (*notes, "sample data written for this project, not GLUE")
        for file, published in self.spec.published.items():
            if not self._has(file):
                notes.append(f"{self.spec.name} {file}: not there ({published} published items)")
                continue
            facts = self._file(file)[1]
            if facts["items"] != published:
                notes.append(f"{self.spec.name} {file}: {facts['items']} of {published} published items")
            if facts.get("left_out"):
                notes.append(f"{self.spec.name} {file}: {facts['left_out']} torn rows left out, as on the hub")
        return tuple(notes)

    def examples(self, split: Split) -> list[Example]:
        """Return all items: the training set, or (validation and test alike) the development set; MNLI: both halves."""
        names = ["train"] if split == "train" else list(self.spec.development.values())
        return [example for name in names for example in self._file(name)[0]]

    def _has(self, file: str) -> bool:
        return self._folder is None or files.exists(self._folder, f"{file}.tsv")

    def _file(self, file: str) -> tuple[list[Example], dict[str, Any]]:
        if file not in self._read:
            subset = next((key for key, name in self.spec.development.items() if name == file), self.spec.name)
            if self._folder is None:
                split = file.replace("dev", "validation")
                self._read[file] = read_hub(self.spec, split, subset)
            else:
                self._read[file] = read_tsv(self._folder, self.spec, file, subset)
        return self._read[file]

    def fingerprint(self) -> dict[str, Any]:
        """Return source and, for files, their sha256 and counts; for the hub repository and pinned revision."""
        if self._source == "hub":
            return {"source": "hub", "repository": HUB_REPOSITORY, "revision": HUB_REVISION, "config": self.spec.name}
        counts = {name: self._file(name)[1] for name in self.spec.published if self._has(name)}
        if not counts:
            raise DataError(
                f"{self._folder}: no {self.spec.folder} files (train.tsv, dev.tsv or .gz) here; "
                "data.dir needs glue/ with a folder per task (docs/data.md)"
            )
        return {"source": self._source, "files": counts}

    def published_train_examples(self) -> int:
        """Return the published size of the training set."""
        return self.spec.published["train"]

    def texts(self, example: Example) -> tuple[str, ...]:
        """Return the one or two texts of an item, in the order the encoder reads them."""
        return tuple(example.fields[column] for column in self.spec.hub_texts)

    def target(self, example: Example) -> int | float:
        """Return the class number or, for STS-B, the similarity (0-5) the model is trained towards."""
        word = example.references[0]
        return self.labels.index(word) if self.labels else float(word)

    def render(self, example: Example, *, training: bool) -> Prompt:
        """Return the item as text, for fingerprints and display; the encoder reads `texts` as a pair."""
        return Prompt("\n".join(self.texts(example)), f"\n{example.references[0]}")

    def read(self, reply: str, example: Example) -> Reading:
        """Read a label word (STS-B: a number) from text; None if it is neither. A head's output needs no reading."""
        word = reply.strip()
        if self.labels:
            return word if word in self.labels else None
        try:
            return float(word)
        except ValueError:
            return None

    def score(self, readings: Sequence[Reading], examples: Sequence[Example], scoring: str = SCORING) -> list[Score]:
        """Score label words (STS-B: numbers); one `Score` for each half of MNLI present and one for all ("mnli")."""
        if len(readings) != len(examples):
            raise ValueError(f"{len(readings)} readings for {len(examples)} examples; there must be one per item")
        groups = {subset: [i for i, e in enumerate(examples) if e.subset == subset] for subset in self.spec.development}
        groups = {subset: places for subset, places in groups.items() if places}
        groups[self.spec.name] = list(range(len(examples)))
        return [
            self._score(subset, [readings[i] for i in places], [examples[i] for i in places], scoring)
            for subset, places in groups.items()
        ]

    def _score(self, subset: str, readings: list[Reading], examples: list[Example], scoring: str) -> Score:
        labels = [example.references[0] for example in examples]
        name = self.spec.name
        return Score(
            subset=subset,
            scoring=scoring,
            items=len(examples),
            metrics=metrics.score(name, readings, labels),
            unreadable=sum(reading is None for reading in readings),
            chance=metrics.chance(name, labels),
            at_chance=metrics.at_chance(name, readings, labels),
            per_item=self._per_item(readings, labels),
        )

    def _per_item(self, readings: list[Reading], labels: list[str]) -> dict[str, list[Any]]:
        """Return what the headline metric is made of, per item; {} for a correlation with an unreadable answer."""
        pairs = list(zip(readings, labels, strict=True))
        if self.spec.headline == "accuracy":
            return {"accuracy": [reading == label for reading, label in pairs]}
        if None in readings:
            return {}
        if self.labels:
            positive = self.labels[1]
            return {self.spec.headline: [(reading == positive, label == positive) for reading, label in pairs]}
        return {self.spec.headline: [(reading, float(label)) for reading, label in pairs]}

    def selection_score(self, readings: Sequence[Reading], examples: Sequence[Example]) -> float | None:
        """Return what an epoch is chosen by: the headline metric over all items (None: undefined, counts as lowest)."""
        labels = [example.references[0] for example in examples]
        return metrics.score(self.spec.name, readings, labels)[self.spec.headline]
