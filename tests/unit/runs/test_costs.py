"""GPU-hours and disk of a plan, against the committed records, the benchmarks and a run that is made here."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal

import pytest

from dual_lora.config.compose import compose
from dual_lora.launch import describe, prepare
from dual_lora.records.schema import Record
from dual_lora.report import neighbours
from dual_lora.runs import hours, leftovers, lifecycle
from dual_lora.runs.cards import CARDS
from dual_lora.runs.disk_space import space
from dual_lora.runs.kept_tensors import trained_parameters
from dual_lora.runs.phases import setup
from dual_lora.runs.plan import sweep_hours
from dual_lora.runs.resolve import resolve
from dual_lora.runs.sweep_cost import cost_of
from tests.small_cells import config
from tests.unit.runs import test_memory_of_records as recorded
from tests.unit.runs.test_memory import benchmark

AT_A_TIME = {"8eb958e": 24}  # E2: eight commands of three; later records name their cards


def at_a_time(records: Sequence[Record]) -> Callable[[Record], int]:
    """Return how many runs shared a record's card with it, itself counted, on average."""
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    for record in records:
        for card in record.execution.get("cards") or []:
            spans.setdefault(card, []).append(neighbours.span(record) or pytest.fail("no times"))

    def several(record: Record) -> int:
        cards, times = record.execution.get("cards"), neighbours.span(record)
        if not cards or times is None:
            return AT_A_TIME.get(record.origin["commit"][:7], record.parallel)
        began, ended = times
        shared = ((min(ended, other[1]) - max(began, other[0])).total_seconds() for other in spans[cards[0]])
        return round(sum(max(0.0, seconds) for seconds in shared) / (ended - began).total_seconds())

    return several


def test_the_stated_error_is_that_of_the_committed_records():
    known, models = {}, {}
    measured = recorded.measured()
    several = at_a_time(measured)
    for record in measured:
        if record.status != "finished":
            continue
        like = f"{recorded.alike(record)} {several(record)}"
        if like not in known:
            run = recorded.resolved(record)
            curves = record.curves
            steps = max((int(step) for step, _ in curves.get("train_loss", [])), default=0)
            validated = curves.get("validation_loss") or [[steps or 1, 0.0]]
            run = dataclasses.replace(run, steps=steps, steps_per_epoch=int(validated[0][0]))
            found = hours.estimate(run, recorded.lengths_of(record, run), CARDS["h200"])
            together = several(record) * hours.share(run, several(record))
            known[like] = (found["training"] + found["evaluation"]) * together
        real = (record.cost.train_seconds or 0.0) + (record.cost.eval_seconds or 0.0)
        models.setdefault(record.name("model"), []).append(abs(known[like] / real - 1))
    assert models.keys() == hours.ERRORS.keys()
    for model, own in models.items():
        found = half_and_nine_in_ten(own)
        told = f"hours.ERRORS[{model!r}] should be ({found[0]:.2f}, {found[1]:.2f}); then run.py bench gpu-hours"
        assert found == pytest.approx(hours.ERRORS[model], abs=0.05), told


def half_and_nine_in_ten(errors: list[float]) -> tuple[float, float]:
    return statistics.median(errors), sorted(errors)[int(0.9 * len(errors))]


@pytest.mark.parametrize("method", ["lora", "dora", "dual_lora"])
def test_a_step_of_llama_7b_takes_what_the_benchmark_measured(method):
    [cell] = compose(["model=llama", "task=commonsense", f"method={method}", "launch.per_device_batch=16"])
    run = resolve(cell, planned=True)
    measured = benchmark("graphs")["steps"]["LLaMA-7B, 16 x 112"][method]["graph"]["median_ms"] / 1e3
    assert hours._step(run, 16 * 112, 1.0, 6_738_415_616, graphs=True) == pytest.approx(measured, rel=0.05)


def test_a_card_of_a_third_of_the_speed_takes_more_and_runs_that_share_one_cost_less():
    [cell] = compose(["model=llama2", "task=commonsense", "method=lora", "plan=h200"])
    alone = sweep_hours([resolve(cell, planned=True)])
    slower = sweep_hours([resolve(dataclasses.replace(cell, plan="a100"), planned=True)])
    assert 1.8 < slower / alone < 989 / 312 + 0.01
    shared = dataclasses.replace(cell, launch=dataclasses.replace(cell.launch, parallel=4))
    assert sweep_hours([resolve(shared, planned=True)]) == pytest.approx(alone / 4**0.4)


def test_disk_is_what_a_run_leaves(tmp_path):
    cell = config(tmp_path, "method=lora", "method.r=32", "protocol.checkpoint=last")
    [item] = prepare([cell])
    run = setup(item, CARDS["h200"])
    planned = space(item, run)
    assert planned.checkpoints == cell.launch.keep_checkpoints * 12 * trained_parameters(run)
    made = lifecycle.run(item)
    assert made["status"] == "finished"
    names = ("last.safetensors", "adapter", "selected")
    left = sum(leftovers.size(item.folder / name) for name in names if (item.folder / name).exists())
    assert left == pytest.approx(planned.stays, rel=0.15)  # headers and the adapter's card


def test_runs_that_differ_in_the_seed_only_share_a_line(capsys):
    words = ["model=smollm2", "task=e2e", "method=lora,dora", "seed=0,1,2", "data.source=sample", "plan=h100"]
    describe(compose(["-m", *words]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("model=smollm2 task=e2e method=lora")
    assert "3 run(s) of" in lines[0]
    assert lines[2].startswith("together: 6 runs, about ")
    assert "NVIDIA H100 80GB HBM3 (not the card of this machine)" in lines[2]


@pytest.mark.parametrize("hours", [0.00667, 0.014449, 2.4161, 123.456])
def test_what_a_plan_of_a_sweep_multiplies_and_adds_up_agrees(hours, monkeypatch, capsys):
    """As printed: 3 × 0.01 = 0.02 is what a factor of two digits next to an exact product gives."""
    monkeypatch.setattr("dual_lora.runs.plan.gpu_hours", lambda *given: hours)
    describe(compose(["-m", "model=smollm2", "task=e2e", "method=lora,dora", "seed=0,1,2", "data.source=sample"]))
    *lines, total = capsys.readouterr().out.splitlines()
    found = [re.search(r"(\d+) × (\S+) = (\S+) GPU-hours", line) for line in lines]
    printed = [tuple(map(Decimal, one.groups())) for one in found if one is not None]
    assert len(printed) == 2
    for count, each, product in printed:
        assert count * each == product
        assert each == pytest.approx(Decimal(hours), rel=Decimal("0.005"))
    shown = re.search(r"about (\S+) GPU-hours", total)
    assert shown is not None
    assert Decimal(shown[1]) == pytest.approx(sum(product for *_, product in printed), rel=Decimal("0.005"))


def test_the_cost_of_printed_commands_is_that_of_their_runs():
    words = "model=smollm2 task=e2e data.source=sample"
    text = cost_of([f"python run.py -m {words} method=lora seed=0,1", f"python run.py -m {words} method=dora seed=0"])
    assert text.startswith("3 runs, about ")
    assert "GPU-hours on " in text
    assert cost_of(["python run.py -m model=smollm2 task=e2e method=lorra"]).startswith("GPU-hours are not known: ")
