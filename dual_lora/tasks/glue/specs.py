"""The nine GLUE tasks: which columns have the texts and the target, and how many items were published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dual_lora.metrics.glue import HEADLINES, LABELS

HUB_REPOSITORY = "nyu-mll/glue"
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # 2024-01-30, the parquet files
NO_MNLI_START = "no MNLI start"


@dataclass(frozen=True)
class Spec:
    """One task. `texts` and `target` are columns of the tsv files by name; `hub_texts` the hub's columns."""

    name: str
    folder: str
    texts: tuple[str, ...]
    target: str
    hub_texts: tuple[str, ...]
    published: Mapping[str, int]  # items in train.tsv and in each development file
    dev_files: Mapping[str, str] = field(default_factory=dict)  # subset -> file; filled in below
    columns: tuple[str, ...] = ()  # the file's columns where it has no header line

    @property
    def labels(self) -> tuple[str, ...]:
        return LABELS[self.name]

    @property
    def headline(self) -> str:
        return HEADLINES[self.name]

    @property
    def development(self) -> Mapping[str, str]:
        """Subset -> the development file's name without `.tsv`."""
        return self.dev_files or {self.name: "dev"}


_PAIR = ("sentence1", "sentence2")
SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            name="cola",
            folder="CoLA",
            texts=("sentence",),
            target="label",
            hub_texts=("sentence",),
            published={"train": 8551, "dev": 1043},
            columns=("source", "label", "mark", "sentence"),
        ),
        Spec("sst2", "SST-2", ("sentence",), "label", ("sentence",), {"train": 67349, "dev": 872}),
        Spec("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", _PAIR, {"train": 3668, "dev": 408}),
        Spec("stsb", "STS-B", _PAIR, "score", _PAIR, {"train": 5749, "dev": 1500}),
        Spec(
            "qnli", "QNLI", ("question", "sentence"), "label", ("question", "sentence"), {"train": 104743, "dev": 5463}
        ),
        Spec("rte", "RTE", _PAIR, "label", _PAIR, {"train": 2490, "dev": 277}),
        Spec("wnli", "WNLI", _PAIR, "label", _PAIR, {"train": 635, "dev": 71}),
        Spec(
            name="mnli",
            folder="MNLI",
            texts=_PAIR,
            target="gold_label",
            hub_texts=("premise", "hypothesis"),
            published={"train": 392702, "dev_matched": 9815, "dev_mismatched": 9832},
            dev_files={"matched": "dev_matched", "mismatched": "dev_mismatched"},
        ),
        Spec(
            name="qqp",
            folder="QQP",
            texts=("question1", "question2"),
            target="is_duplicate",
            hub_texts=("question1", "question2"),
            published={"train": 363846, "dev": 40430},
        ),
    )
}
