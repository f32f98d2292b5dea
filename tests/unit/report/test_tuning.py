"""Which commands a study gets from what trials chose."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from dual_lora.records.schema import Record, parse
from dual_lora.report.definition import Block, Column, Experiment
from dual_lora.report.tuned_study import commands, of_study, winners
from dual_lora.report.tuning import (
    PART,
    RATE,
    Choice,
    Trial,
    TuningError,
    Unfinished,
    choose,
    new_trials,
)
from tests.unit.records.test_record_names import name_of
from tests.unit.report import report_builder


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


# Trials of a language model: the loss has its minimum at a rate, with a tilt of its own at each seed.


def trials(method: str = "lora,dual_lora", rates: str = "1e-3,2e-3,4e-3", **changes: str) -> Experiment:
    sweep = {"model": "smollm2", "task": "e2e", "method": method, RATE: rates, "protocol": "strict", PART: "select"}
    sweep |= {"profile": "trial", "seed": "100,101"} | {key.replace("__", "."): value for key, value in changes.items()}
    block = Block(block="Trials", columns=(Column(label="loss"),))
    values = {key: tuple(value.split(",")) for key, value in sweep.items() if value}
    return Experiment("trials", values, block)


def trial(method: str, rate: float, seed: int, loss: float, status: str = "finished", **settings: Any) -> Record:
    protocol = {"name": "strict", "task": "e2e", "validation_part": "select", "hash": "aaaa"}
    made = report_builder.record(
        method, seed, {"all": loss}, metric="loss", task="e2e", profile="trial", learning_rate=rate, protocol=protocol,
        status=status,
    )  # fmt: skip
    made["identity"]["method"]["settings"] |= settings
    made["identity"]["run_id"] = name_of(made["identity"])
    for measured in made["scores"].get("measurements", []):
        measured |= {"split": "validation", "scoring": "loss"}
        made["scores"]["headline"] |= {"scoring": "loss"}
    return parse(made, "trial")


def bowl(best: dict[str, float], rates: tuple[float, ...]) -> list[Record]:
    """Records of every rate and seed whose loss is lowest at the method's best rate."""
    return [
        trial(method, rate, seed, 1.0 + math.log2(rate / middle) ** 2 + 0.001 * seed)
        for method, middle in best.items()
        for rate in rates
        for seed in (100, 101)
    ]


def test_a_best_within_its_grid_is_chosen_by_the_mean_over_the_seeds() -> None:
    records = bowl({"lora": 2e-3}, (1e-3, 2e-3, 4e-3))
    [choice] = choose([trials("lora")], records)
    assert choice.chosen.settings == {RATE: "2e-3"}
    assert choice.chosen.value == pytest.approx(1.1005)
    assert "without label smoothing" in choice.measure
    # One seed alone would choose 4e-3; the mean does not, nor a rate that diverged at a seed.
    losses = {
        (1e-3, 100): 1.3,
        (1e-3, 101): 1.3,
        (2e-3, 100): 1.2,
        (2e-3, 101): 1.2,
        (4e-3, 100): 1.0,
        (4e-3, 101): 1.6,
    }
    tilted = [trial("lora", rate, seed, loss) for (rate, seed), loss in losses.items()]
    assert choose([trials("lora")], tilted)[0].chosen.settings == {RATE: "2e-3"}
    diverged = [*tilted[:-2], trial("lora", 4e-3, 100, 1.0), trial("lora", 4e-3, 101, 0.0, status="diverged")]
    [choice] = choose([trials("lora")], diverged)
    assert (choice.chosen.settings[RATE], choice.trials[-1].value) == ("2e-3", None)


def test_at_an_end_nothing_is_chosen_and_the_grids_of_all_methods_grow_alike() -> None:
    experiments = [trials("lora"), trials("dual_lora", rates="2e-3,4e-3,8e-3")]
    low, high = (1e-3, 2e-3, 4e-3), (2e-3, 4e-3, 8e-3)
    best = {"lora": 2e-3, "dual_lora": 3.2e-2}
    records = [*bowl({"lora": best["lora"]}, low), *bowl({"dual_lora": best["dual_lora"]}, high)]
    with pytest.raises(Unfinished, match="the best of a grid is at its end.* 4 trials have no record") as found:
        choose(experiments, records)
    assert found.value.commands == [
        f"python run.py -m experiment=trials model=smollm2 task=e2e method={method} {RATE}={rate} seed=100,101"
        for method, rate in (("lora", "0.008"), ("dual_lora", "0.016"))
    ]
    records += [*bowl({"lora": best["lora"]}, (8e-3,)), *bowl({"dual_lora": best["dual_lora"]}, (16e-3,))]
    with pytest.raises(Unfinished, match="2 above"):
        choose(experiments, records)
    records += [*bowl({"lora": best["lora"]}, (16e-3,)), *bowl({"dual_lora": best["dual_lora"]}, (32e-3,))]
    with pytest.raises(Unfinished, match="3 above"):  # the best of all now, and at the new end
        choose(experiments, records)
    records += [*bowl({"lora": best["lora"]}, (32e-3,)), *bowl({"dual_lora": best["dual_lora"]}, (64e-3,))]
    made = {choice.method: choice for choice in choose(experiments, records)}
    assert {method: float(choice.chosen.settings[RATE]) for method, choice in made.items()} == best
    assert {len(choice.trials) for choice in made.values()} == {6}, "as many for each method"


def test_a_grid_grows_by_its_own_ratio_on_the_side_where_the_best_is() -> None:
    rates = (3e-4, 1e-3, 3e-3)
    with pytest.raises(Unfinished) as found:
        choose([trials("lora", rates="3e-4,1e-3,3e-3")], bowl({"lora": 1e-5}, rates))
    assert f"{RATE}=9e-05 " in found.value.commands[0]


def test_what_never_bends_is_given_up() -> None:
    rates = tuple(1e-3 * 2**place for place in range(7))
    with pytest.raises(TuningError, match=r"still at an end after 4 more.*\(lora\)"):
        choose([trials("lora")], bowl({"lora": 1.0}, rates))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "100"}, "two seeds or more"),
        ({"seed": "0,100"}, "from 100 on"),
        ({"protocol__validation_part": ""}, "give protocol.validation_part=select"),
        ({"protocol__validation_part": "report"}, "give protocol.validation_part=select"),
        ({"rates": "1e-3,2e-3"}, "three values or more"),
        ({"rates": "low,middle,high"}, "only numbers have a grid"),
        ({"rates": "1e-3"}, "sweep one setting"),
        ({"rates": "1e-3", "method__r": "4,8", "method__alpha": "1,2"}, "these sweep method.r, method.alpha"),
    ],
)
def test_trials_that_may_not_choose_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(TuningError, match=message):
        choose([trials("lora", **changes)], [])


def test_every_value_of_what_else_is_swept_gets_a_rate_of_its_own() -> None:
    rates, best = (1e-3, 2e-3, 4e-3, 8e-3), {4: 4e-3, 8: 2e-3}
    swept = trials("lora", "1e-3,2e-3,4e-3,8e-3", method__r="4,8")
    records = [
        trial("lora", rate, seed, math.log2(rate / middle) ** 2, r=rank)
        for rank, middle in best.items()
        for rate in rates
        for seed in (100, 101)
    ]
    made = choose([swept], records)
    assert [choice.chosen.settings for choice in made] == [
        {"method.r": "4", RATE: "4e-3"},
        {"method.r": "8", RATE: "2e-3"},
    ]
    reported = study(model="smollm2", task="e2e", method="lora").sweep | {"method.r": ("8", "16")}
    assert commands(made, Experiment("study", reported, Block(block="b", columns=(Column(label="loss"),))))[0] == (
        f"python run.py -m experiment=study method=lora task=e2e method.r=8 {RATE}=2e-3 recipe.trials=4"
    )
    with pytest.raises(Unfinished) as found:
        choose([swept], records[:-1])
    assert found.value.commands == [
        f"python run.py -m experiment=trials model=smollm2 task=e2e method=lora {RATE}=8e-3 method.r=8 seed=101"
    ]


def test_a_new_models_trials_are_five_rates_around_each_recipes() -> None:
    made = new_trials({("smollm2", "e2e", "lora"): 4e-3, ("smollm2", "e2e", "dual_lora"): 1.6e-2}, {"data.dir": "D"})
    with pytest.raises(Unfinished) as found:
        choose(made, [])
    common = "seed=100,101 protocol=strict protocol.validation_part=select profile=trial data.dir=D"
    assert found.value.commands == [
        f"python run.py -m model=smollm2 task=e2e method=lora {RATE}=0.001,0.002,0.004,0.008,0.016 {common}",
        f"python run.py -m model=smollm2 task=e2e method=dual_lora {RATE}=0.004,0.008,0.016,0.032,0.064 {common}",
    ]
    [one] = new_trials({("smollm2", "e2e", "lora"): 4e-3}, {"task.metrics": "[BLEU,NIST]"})
    assert one.sweep["task.metrics"] == ("[BLEU,NIST]",), "a list is no sweep"
    [glue] = new_trials({("minilm", "glue/rte", "lora"): 1e-3}, {})
    assert PART not in glue.sweep, "a classifier's held-out tenth chooses"


def test_a_method_that_a_study_does_not_run_grows_no_grid_of_its() -> None:
    rates = (1e-3, 2e-3, 4e-3)
    records = bowl({"lora": 2e-3, "dora": 8e-3}, rates)
    with pytest.raises(Unfinished, match="0 below, 1 above"):
        choose([trials("lora,dora")], records)
    own = study(model="smollm2", task="e2e", method="lora,dual_lora")
    [made] = choose(of_study([trials("lora,dora"), trials("dora")], own, [own]), records)
    assert (made.method, made.chosen.settings[RATE]) == ("lora", "2e-3")
    with pytest.raises(TuningError, match="study runs no method of the trials; its methods: lora,dual_lora"):
        of_study([trials("dora")], own, [own])


def test_of_a_studys_candidates_the_one_with_the_best_trial_is_run() -> None:
    rates = (1e-3, 2e-3, 4e-3)
    records = bowl({"lora": 2e-3}, rates)
    forms = {"dual_lora_no_relu": 1.5, "dual_lora_no_sign": 0.5, "dual_lora_neither": 0.7}
    records += [
        trial(form, rate, seed, loss + math.log2(rate / 2e-3) ** 2)
        for form, loss in forms.items()
        for rate in rates
        for seed in (100, 101)
    ]
    made = choose([trials(",".join(["lora", *forms]))], records)
    confirmed = study(model="smollm2", task="e2e", method=",".join(["lora", *forms]), seed="20,21")
    confirmed = replace(confirmed, block=replace(confirmed.block, candidates=tuple(forms)))
    assert commands(made, confirmed) == [
        f"python run.py -m experiment=study method=lora,dual_lora_no_sign task=e2e {RATE}=2e-3 recipe.trials=3"
    ]
    higher = [replace(one, metric="accuracy") for one in made]
    assert [one.method for one in winners(higher, forms)] == ["lora", "dual_lora_no_relu"]


def test_studies_of_the_same_candidates_run_the_same_one() -> None:
    """Where the grids grow for a method that only one of them runs, the other looks at the new rates too."""
    rates = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
    losses = {"dual_lora_no_relu": (3.0, 1.0, 3.0, 3.0, 3.0), "dual_lora_no_sign": (3.0, 1.5, 2.0, 0.5, 3.0)}
    losses |= {"dual_lora": (3.0, 1.0, 3.0, 3.0, 3.0), "lora": (4.0, 3.0, 2.0, 2.5, 3.0)}  # LoRA's grid has to grow
    records = [
        trial(method, rate, seed, value)
        for method, values in losses.items()
        for rate, value in zip(rates, values, strict=True)
        for seed in (100, 101)
    ]
    forms = ("dual_lora_no_relu", "dual_lora_no_sign")

    def confirmed(name: str, method: str) -> Experiment:
        made = study(model="smollm2", task="e2e", method=",".join([method, *forms]), seed="20,21")
        return replace(made, name=name, block=replace(made.block, candidates=forms))

    studies = [confirmed("against_lora", "lora"), confirmed("against_dual_lora", "dual_lora")]
    tried = [trials(",".join(losses))]
    for one in studies:
        choices = choose(of_study(tried, one, studies), records)
        assert {made.method for made in winners(choices, forms)} == {"lora", "dual_lora", "dual_lora_no_sign"}
        assert any("method=dual_lora_no_sign" in line for line in commands(choices, one))
