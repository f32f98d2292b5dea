"""Two runs next to each other."""

from __future__ import annotations

import pytest

from dual_lora.records.schema import parse
from dual_lora.report import side_by_side
from tests.unit.report.report_builder import record


def test_only_what_differs_is_listed_and_scores_have_a_difference():
    one, other = parse(record("lora", scores={"boolq": 0.6})), parse(record("dual_lora", scores={"boolq": 0.65}))
    settings, scores, cost = side_by_side.tables(one, other)
    assert [row[0] for row in settings.rows] == ["method.name", "recipe.name"]
    assert scores.rows[0][-3:] == ["60.00", "65.00", "+5.00"]
    assert ["card", "1 × NVIDIA H100", "1 × NVIDIA H100"] in cost.rows


def test_a_run_is_found_by_the_beginning_of_its_id():
    records = [parse(record("lora", seed)) for seed in range(40)]
    wanted = records[7]
    assert side_by_side.find(wanted.run_id, records) is wanted
    assert side_by_side.find(wanted.run_id[:12], records) is wanted
    with pytest.raises(ValueError, match="records begin so"):
        side_by_side.find("", records)
    with pytest.raises(ValueError, match="no record of run 'zz'"):
        side_by_side.find("zz", records)
