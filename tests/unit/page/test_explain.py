"""What `tables --explain` says of a cell."""

from __future__ import annotations

import pytest

from dual_lora.page import explain
from tests.unit.page.page_builder import study, workspace
from tests.unit.report.report_builder import seeds_of


def explained(space, row: str, column: str) -> str:
    view = space.views(space.all_records())["table_x"]
    return "\n".join(explain.explain(view, space.experiments(), row, column))


@pytest.mark.parametrize("row", ["lora", "LORA", "smollm2, lora"])
def test_a_cell_is_explained_by_its_seeds_runs_and_sources(tmp_path, row):
    records = seeds_of("lora", [0.60, 0.61, 0.62], guessed=("epochs",))
    text = explained(workspace(tmp_path, *records), row, "boolq")
    for record, value in zip(records, ("60.000", "61.000", "62.000"), strict=True):
        assert f"seed {record['identity']['seed']}: {value} ({record['identity']['run_id']})" in text
    for part in ("61.0 ± 1.0", "commit: c0ffee", "card: 1 × NVIDIA H100", "epochs: guess: no paper says"):
        assert part in text
    assert "published: 68.9 ± 0.4, A paper & its_table" in text
    assert "python run.py -m experiment=table_x method=lora seed=3,4,5" in text  # what is missing


def test_an_average_names_the_task_of_each_seed(tmp_path):
    assert "commonsense, seed 0: 65.000" in explained(workspace(tmp_path, *seeds_of("lora", [0.6])), "lora", "Avg.")


def test_an_empty_cell_and_a_published_one_say_so(tmp_path):
    space = workspace(tmp_path, *study()[:2])
    assert "not run\n    fill it with:\n        python run.py" in explained(space, "dual_lora", "BoolQ")
    assert "64.3, published: Gossip" in explained(space, "Prefix", "BoolQ")


@pytest.mark.parametrize(("row", "column", "legal"), [("lorra", "BoolQ", "LORA"), ("lora", "Bool", "BoolQ")])
def test_unknown_names_are_errors_that_list_the_legal_ones(tmp_path, row, column, legal):
    with pytest.raises(ValueError, match=legal):
        explained(workspace(tmp_path, *study()[:2]), row, column)
