"""A table over a few records, as the tests of the report build it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dual_lora.records.schema import parse
from dual_lora.report import definition
from dual_lora.report.table import Builder
from tests.unit.report.report_builder import EXPERIMENT

PUBLISHED = """table,model,method,trainable,task,metric,value,source,second_hand
t,Small,LoRA (r=32),0.83 %,BoolQ,accuracy,68.9,A paper & its_table,no
t,Small,LoRA (r=32),0.83 %,BoolQ,accuracy_std,0.4,A paper & its_table,no
t,Small,Prefix,0.11 %,BoolQ,accuracy,64.3,Gossip,yes
"""


@pytest.fixture
def build(tmp_path: Path):
    """Return a function from record dictionaries to the table of EXPERIMENT (or of a changed one)."""
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "papers.csv").write_text(PUBLISHED)

    def built(*values, text: str = EXPERIMENT):
        path = tmp_path / "table_x.yaml"
        path.write_text(text)
        experiment = definition.read(path)
        builder = Builder(tmp_path / "published", tmp_path / "configs")
        return builder.build("table_x", [experiment], [parse(value) for value in values])

    return built
