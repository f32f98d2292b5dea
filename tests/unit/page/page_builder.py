"""A small workspace with records as a run would write them, and its page."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dual_lora import page
from dual_lora.report.workspace import Workspace
from tests.unit.report.conftest import PUBLISHED
from tests.unit.report.report_builder import EXPERIMENT, record, seeds_of, write

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror=window.stolen=1>"
FIGURE = "  figure: {x: recipe.learning_rate, column: BoolQ, log_x: true}\n  published_models"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


# Two layers, 2 × 3 and 4 × 6, watched at two steps.
DIAGNOSTICS = {
    "steps": [1, 10],
    "clip_acted": False,
    "layers": {
        "a": {
            "shape": [2, 3], "weight_norm": 3.0,
            "series": {"zero_share": [0.5, 0.6], "flipped_share": [0.2, 0.01], "update_ratio": [0.1, 0.2]},
            "final": {"numerical_rank": 2, "stable_rank": 1.5, "untrained_stable_rank": 2.5},
            "agreement": {"cosine": 0.3},
        },
        "b": {
            "shape": [4, 6], "weight_norm": 4.0,
            "series": {"zero_share": [0.5, 0.5], "flipped_share": [0.1, 0.02], "update_ratio": [0.1, 0.1]},
            "final": {"numerical_rank": 4, "stable_rank": 3.0, "untrained_stable_rank": 4.0},
            "agreement": {"cosine": 0.1},
        },
    },
}  # fmt: skip


def workspace(folder: Path, *records: dict[str, Any], text: str = EXPERIMENT, name: str = "table_x") -> Workspace:
    """Return a workspace with one table and these records."""
    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "results" / "published").mkdir(parents=True)
    (folder / "results" / "published" / "papers.csv").write_text(PUBLISHED, encoding="utf-8")
    write(folder / "results" / "records", *records)
    return Workspace(folder)


def document(space: Workspace) -> str:
    """Return the page over all records of a workspace."""
    held = space.all_records()
    return page.document(space, space.views(held), held, space.refused(committed=False))


def values(text: str) -> dict[str, Any]:
    """Return what a page holds, read as a browser reads it, all runs together and each note in its place."""
    found = re.search(r'<script type="application/json" id="values">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    held = json.loads(found[1])
    sweeps = [json.loads(zlib.decompress(base64.b64decode(packed))) for packed in held["sweeps"].values()]
    held["runs"] = {
        name: run | {"notes": [sweep["pool"][place] for place in run.get("notes", [])]}
        for sweep in sweeps
        for name, run in sweep["runs"].items()
    }
    return held


def study() -> list[dict[str, Any]]:
    """Return a base, LoRA and a Dual LoRA that is better; one run holds hostile texts and one did not finish."""
    made = [
        record("none"),
        *seeds_of("lora", [0.60, 0.61, 0.62, 0.60, 0.61, 0.62], guessed=("epochs",)),
        *seeds_of("dual_lora", [0.64, 0.65, 0.67, 0.64, 0.65, 0.66]),
    ]
    made[1]["scores"]["notes"] = [HOSTILE]
    made[1]["scores"]["samples"] = [{"input": f"input {HOSTILE}", "reply": HOSTILE, "reference": "fine"}]
    for place, values in enumerate(made):
        values["identity"]["model"]["label"] = "Small \u202e<b>model</b>"
        values["curves"] = {"train_loss": [[step, 3.0 / step + place / 50] for step in range(1, 200)]}
        values["origin"]["command"] = "python run.py model=smollm2"
        values["execution"]["threads"] = 7
    made[-1]["curves"]["diagnostics"] = DIAGNOSTICS
    return made


def of_method(page_values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return our row of a method in the page's first block."""
    rows = page_values["tables"][0]["blocks"][0]["rows"]
    return next(row for row in rows if row.get("is", ["", ""])[1] == method)
