"""The committed exports are of runs whose records are committed, and start from the scores that those have."""

from __future__ import annotations

import json

import pytest

from dual_lora.benchmarks import export_tables
from dual_lora.report.records import read_all
from tests import ROOT

FOUND = json.loads((ROOT / "results" / "benchmarks" / "export_lora.json").read_text())


@pytest.mark.parametrize("name", [name for name in FOUND if name.startswith("MiniLM")])
def test_the_adapter_scores_as_its_record_says(name):
    """Trained on a GPU and measured here on a CPU: a last digit or an item may differ."""
    entry = FOUND[name]
    records = {record.run_id: record for record in read_all(ROOT / "results" / "records")[0]}
    headline = records[entry["run"]].scores.headline
    assert entry["scores"]["Dual LoRA"][headline.metric] == pytest.approx(headline.value, abs=3e-3)


def test_the_page_shows_every_rank_of_every_adapter():
    text = (ROOT / "docs" / "serving.md").read_text()
    assert export_tables.section(FOUND) in text
    assert text.count("\n| 32 |") == len(FOUND) >= 3
