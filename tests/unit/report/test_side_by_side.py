"""Two runs next to each other."""

from __future__ import annotations

import pytest

from dual_lora.records.schema import parse
from dual_lora.report import provenance, side_by_side
from tests.unit.report.report_builder import record


def test_only_what_differs_is_listed_and_scores_have_a_difference():
    one, other = parse(record("lora", scores={"boolq": 0.6})), parse(record("dual_lora", scores={"boolq": 0.65}))
    settings, scores, cost = side_by_side.tables(one, other)
    assert [row[0] for row in settings.rows] == ["method.name", "recipe.name"]
    assert scores.rows[0][-3:] == ["60.00", "65.00", "+5.00"]
    assert ["card", "1 × NVIDIA H100", "1 × NVIDIA H100"] in cost.rows


def test_of_package_versions_those_that_differ_are_listed():
    """All in a cell were too wide for two runs next to each other."""
    made = [record("lora"), record("dual_lora")]
    for values, torch in zip(made, ("2.12.0", "2.13.0"), strict=True):
        values["origin"] |= {"versions": {"python": "3.12.3", "torch": torch}, "commit": "ab" * 20, "dirty": True}
    cost = side_by_side.tables(*map(parse, made))[2]
    assert cost.title == "cost and origin (1 versions do not differ)"
    assert cost.rows[-1] == ["torch", "2.12.0", "2.13.0"]
    assert ["commit", *["abababababab… with uncommitted changes"] * 2] in cost.rows


def test_a_run_is_found_by_the_beginning_of_its_id():
    records = [parse(record("lora", seed)) for seed in range(40)]
    wanted = records[7]
    assert side_by_side.find(wanted.run_id, records) is wanted
    assert side_by_side.find(wanted.run_id[:12], records) is wanted
    with pytest.raises(ValueError, match="records begin so"):
        side_by_side.find("", records)
    with pytest.raises(ValueError, match="no record of run 'zz' among 40; python run.py status lists them$"):
        side_by_side.find("zz", records)
    mistyped = f"{wanted.run_id[:-1]}x"
    with pytest.raises(ValueError, match=f"among 40; did you mean '{wanted.run_id}'\\?$"):
        side_by_side.find(mistyped, records)


@pytest.mark.parametrize("program", ["python run.py", "dual-lora"])
def test_the_command_that_repeats_a_run_has_all_its_words_whatever_started_it(program):
    made = record("lora", 0)
    made["origin"]["command"] = f"{program} model=smollm2 task=e2e"
    assert provenance.command(parse(made), []) == "python run.py model=smollm2 task=e2e"
    made["origin"]["command"] = program
    assert provenance.command(parse(made), []) == ""
