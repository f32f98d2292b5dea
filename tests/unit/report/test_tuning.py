"""Which commands a study gets from what trials chose."""

from __future__ import annotations

import pytest

from dual_lora.report.definition import Block, Column, Experiment
from dual_lora.report.tuning import Choice, Trial, TuningError, commands

RATE = "recipe.learning_rate"


def study(**sweep: str) -> Experiment:
    choices = {"model": "minilm", "task": "glue/cola,glue/rte", "method": "lora,dora,full", "seed": "0,1", **sweep}
    block = Block(block="Study", columns=(Column(label="score"),))
    return Experiment("study", {key: tuple(values.split(",")) for key, values in choices.items()}, block)


def chosen(task: str, method: str, rate: str, model: str = "minilm") -> Choice:
    trials = tuple(Trial({RATE: one}, 0.5) for one in ("1e-4", rate))
    return Choice(model, task, method, "accuracy", chosen=trials[1], trials=trials)


def test_cells_without_trials_run_on_their_recipes_also_of_a_method_that_was_tried_elsewhere() -> None:
    made = commands([chosen("glue/rte", "lora", "3e-4"), chosen("glue/rte", "dora", "3e-4")], study())
    assert made == [
        f"python run.py -m experiment=study method=lora,dora task=glue/rte {RATE}=3e-4 recipe.trials=2",
        "python run.py -m experiment=study task=glue/cola",
        "python run.py -m experiment=study task=glue/rte method=full",
    ]


def test_a_choice_is_for_its_own_model() -> None:
    two = study(model="minilm,roberta_base", task="glue/rte", method="lora")
    assert commands([chosen("glue/rte", "lora", "3e-4", model="roberta_base")], two) == [
        f"python run.py -m experiment=study method=lora model=roberta_base task=glue/rte {RATE}=3e-4 recipe.trials=2",
        "python run.py -m experiment=study model=minilm",
    ]
    with pytest.raises(TuningError, match="study has no run with a model, task and method of the trials"):
        commands([chosen("glue/rte", "lora", "3e-4", model="gpt2")], two)


@pytest.mark.parametrize(
    ("values", "best", "at_an_end"),
    [
        (("1e-3", "3e-3", "1e-2"), "3e-3", False),
        (("1e-2", "1e-3", "3e-3"), "1e-2", True),  # in any order
        (("1e-3", "1e-2"), "1e-2", False),  # two say nothing about what lies outside
        (("none", "some", "all"), "all", False),  # words have no ends
    ],
)
def test_a_best_value_at_an_end_is_pointed_out(values: tuple[str, ...], best: str, at_an_end: bool) -> None:
    trials = {value: Trial({RATE: value}, 0.5) for value in values}
    made = Choice("m", "t", "lora", "loss", chosen=trials[best], trials=tuple(trials.values()))
    assert made.at_an_end is at_an_end
