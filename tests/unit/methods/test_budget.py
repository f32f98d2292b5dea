"""Equal budgets: the solver finds the nearest rank, keeps proportions and scale, and says what it came to."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from dual_lora.config import ConfigError
from dual_lora.config.choices import options
from dual_lora.methods.budget import read_method, with_budget
from dual_lora.methods.counts import evaluate, planned_parameters

# Query, key, value, up and down projection of LLaMA-7B.
LLAMA_7B = [("q", 4096, 4096), ("k", 4096, 4096), ("v", 4096, 4096), ("up", 4096, 11008), ("down", 11008, 4096)] * 32
ADAPTERS = [name for name in options("method") if read_method(name).trains == "adapter"]


def solved(name: str, budget: str | int, shapes=LLAMA_7B):
    return with_budget(dataclasses.replace(read_method(name), budget=budget), shapes)


def test_published_sizes_of_the_llama_table():
    """0.83 % of LLaMA-7B: LoRA at rank 32, Dual LoRA at 16 + 16 (reference: the DoRA paper's parameter column)."""
    assert planned_parameters(read_method("lora"), LLAMA_7B) == 56_098_816
    assert planned_parameters(read_method("dual_lora"), LLAMA_7B) == 56_098_816
    assert planned_parameters(read_method("dora"), LLAMA_7B) == 56_098_816 + 32 * (4 * 4096 + 11008)


def test_equal_budget_with_lora_is_half_the_rank_for_each_group():
    method, budget = solved("dual_lora", "like:lora@8")
    assert (method.settings["r_magnitude"], method.settings["r_direction"]) == (4, 4)
    assert budget.relative_error == 0
    assert method.settings["alpha"] == 8, "the scale alpha / sqrt(r1 r2) stays 2"


def test_a_rank_split_keeps_its_proportion():
    method, budget = solved("dual_lora_split_1_3", "like:lora@8")
    assert (method.settings["r_magnitude"], method.settings["r_direction"]) == (2, 6)
    assert budget.relative_error == 0


def test_rank_stabilised_lora_keeps_its_alpha():
    assert solved("rslora", "like:lora@8")[0].settings["lora_alpha"] == read_method("rslora").settings["lora_alpha"]


def test_adalora_keeps_pruning_by_the_same_proportion():
    settings = solved("adalora", "like:lora@96")[0].settings
    assert settings["target_r"] == pytest.approx(settings["init_r"] * 32 / 48, abs=1)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("wanted", [900, 3_000, 12_345])
def test_no_other_rank_is_nearer(name, wanted):
    """Against a search over every rank, for every method."""
    shapes = [("q", 64, 64), ("up", 64, 172), ("down", 172, 64)]
    method, budget = solved(name, wanted, shapes)
    base = read_method(name)
    lead = max(budget.ranks, key=lambda rank: base.settings[rank])
    errors = []
    for rank in range(1, 173):
        factor = rank / base.settings[lead]
        ranks = {other: max(1, round(base.settings[other] * factor)) for other in budget.ranks}
        count = planned_parameters(dataclasses.replace(base, settings=base.settings | ranks), shapes)
        errors.append(abs(count - wanted))
    assert abs(budget.got - wanted) == min(errors)
    assert budget.got == planned_parameters(method, shapes)


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_method_asked_for_its_own_size_keeps_its_rank(name):
    method = read_method(name)
    again, budget = solved(name, planned_parameters(method, LLAMA_7B))
    assert budget.relative_error == 0
    if name != "randlora":  # several of its ranks have one count: ceil(min(i, o) / r) bases
        assert {rank: again.settings[rank] for rank in budget.ranks} == {
            rank: method.settings[rank] for rank in budget.ranks
        }


def test_without_a_budget_nothing_changes():
    method = read_method("lora")
    assert with_budget(method, LLAMA_7B) == (method, None)


@pytest.mark.parametrize(
    ("name", "budget", "message"),
    [
        ("lora", "like:lorra@8", "unknown method 'lorra'; did you mean 'lora'"),
        ("lora", "like:dual_lora@8", "needs exactly one rank"),
        ("lora", "like:lora@0", "at least 1"),
        ("lora", "many", "give a number of parameters or like:METHOD@RANK"),
        ("lora", 0, "at least 1 trainable parameter"),
        ("full", 1000, "has no rank to solve for"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(name, budget, message):
    with pytest.raises(ConfigError, match=message):
        solved(name, budget)


def test_formulas_calculate_and_run_nothing_else():
    assert evaluate("ceil(min(i,o)/r)*(r+min(i,o)) - -2//1", {"i": 10, "o": 7, "r": 3}) == 3 * 10 + 2
    for bad in ("__import__('os')", "r.real", "r if o else i", "unknown*2", "'a'*3", "[1][0]", "r**r", "lambda: 1"):
        with pytest.raises(ConfigError, match="cannot be evaluated"):
            evaluate(bad, {"i": 1, "o": 1, "r": 2})


def test_planning_needs_no_torch():
    """A plan answers at once: counting and budgets import nothing heavy."""
    code = (
        "import sys; from dual_lora import methods; from dual_lora.methods.budget import read_method\n"
        "methods.planned_parameters(read_method('lora'), [('q', 8, 8)]); methods.with_budget\n"
        "sys.exit(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() in ("", "[]"), done.stderr
