"""Slopes over a swept setting, against NumPy's and SciPy's own fits."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dual_lora.records.per_item import packed
from dual_lora.records.schema import Record, parse
from dual_lora.report import definition, endpoint, measured, trend
from dual_lora.report.definition import Block, Column, DefinitionError, Endpoint, Experiment, Trend
from tests.unit.records.test_record_names import name_of
from tests.unit.report import report_builder

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
ITEMS = 60
NAMES = {"lora": "LoRA", "dual_lora": "Dual LoRA"}
LOSS = Column(label="loss", split="validation", subset="all", scoring="loss", metric="loss", scale=1, decimals=4)


def record(method: str, seed: int, loss: float, *, rate: float = 1e-3, spread: float = 0.0, **settings: Any) -> Record:
    made = report_builder.record(method, seed, {"all": loss}, metric="loss", task="e2e", learning_rate=rate)
    made["identity"]["method"]["settings"] |= settings
    made["identity"]["run_id"] = name_of(made["identity"])
    for measured_ in made["scores"]["measurements"]:
        measured_ |= {"split": "validation", "scoring": "loss", "items": ITEMS}
    made["scores"]["headline"] |= {"scoring": "loss"}
    tokens = np.arange(1, ITEMS + 1)
    nats = tokens * (loss + spread * np.sin(tokens))
    made["scores"]["per_item"] = {
        "last.validation.loss": {"loss": {"all": packed(np.stack([nats, tokens], axis=1).astype(float))}}
    }
    return parse(made, "made")


def said(records: list[Record], wanted: Trend, over: str, values: str, **block: Any) -> list[str]:
    sweep = {"model": ("smollm2",), "task": ("e2e",), "method": ("lora", "dual_lora"), "protocol": ("strict",)}
    sweep |= {"profile": ("study",), over: tuple(values.split(",")), "seed": ("0", "1", "2", "3")}
    if wanted.of == "best rate":
        sweep |= {"recipe.learning_rate": tuple(map(str, RATES))}
    experiment = Experiment("made", sweep, Block(block="b", columns=(LOSS,), trend=wanted, **block))
    found = measured.block(experiment, records)
    told = endpoint.compare([found])
    return trend.sentences(found, lambda experiment, part, row: NAMES[row.choices[part]], told)


def numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", text)]


def test_an_optimum_is_the_vertex_of_the_parabola_through_the_best_rate_and_its_neighbours() -> None:
    generator = np.random.default_rng(0)
    x = np.log2([1e-3, 2e-3, 4e-3, 8e-3, 32e-3])  # one gap is wider
    losses = generator.normal(size=(200, 5))
    found = trend.optimum(x, losses)
    for row, got in zip(losses, found, strict=True):
        best = int(row.argmin())
        if best in (0, 4):
            assert got == x[best]
        else:
            a, b, _ = np.polyfit(x[best - 1 : best + 2], row[best - 1 : best + 2], 2)
            assert got == pytest.approx(-b / (2 * a), abs=1e-6)
    assert trend.optimum(x, np.ones((1, 5)))[0] == x[0], "the first of equals"


def test_a_slope_is_that_of_least_squares() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=6), generator.normal(size=(20, 6))
    assert trend.slope(x, y) == pytest.approx([stats.linregress(x, row).slope for row in y])


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_best_rate_is_told_as_a_power_of_what_is_swept(power: float) -> None:
    records = [
        record(
            "dual_lora", 0, 1 + 0.1 * (np.log2(rate / 4e-3) - power * np.log2(sigma / 0.02)) ** 2,
            rate=rate, spread=0.01 * np.log2(rate / 4e-3), init_std=sigma,
        )
        for sigma in (0.01, 0.02, 0.04)
        for rate in RATES
    ]  # fmt: skip
    [text] = said(records, Trend("best rate", "loss", "method.init_std"), "method.init_std", "0.01,0.02,0.04")
    assert text.startswith("best rate of Dual LoRA as a power of method.init_std: ")
    point, low, high, *rates = numbers(text)
    assert point == pytest.approx(power, abs=0.05)  # float16 rounds the items
    assert low - 0.01 <= point <= high + 0.01
    assert high - low < 0.5
    assert rates[0::2] == pytest.approx([4e-3 * 2 ** (power * step) for step in (-1, 0, 1)], rel=0.05)
    assert "at an end" not in text


def test_best_rates_of_two_methods_are_told_as_their_ratio_at_each_value() -> None:
    best = {("lora", "[up_proj]"): 3e-3, ("dual_lora", "[up_proj]"): 6e-3, ("dual_lora", "[down_proj]"): 3e-3}
    best["lora", "[down_proj]"] = 9e-4  # below the grid
    records = [
        record(
            method, 0, 1 + 0.1 * np.log2(rate / middle) ** 2, rate=rate, target_modules=[layers.strip("[]")]
        )
        for (method, layers), middle in best.items()
        for rate in RATES
    ]  # fmt: skip
    wanted = Trend("best rate", "loss", "method.target_modules", against="lora")
    up, down = said(records, wanted, "method.target_modules", "[up_proj],[down_proj]")
    assert up.startswith("best rate, Dual LoRA over LoRA, method.target_modules=[up_proj]: ")
    assert numbers(up)[:3] == pytest.approx([2.0] * 3, abs=0.06)
    assert numbers(down)[0] == pytest.approx(3.0, abs=0.1)
    assert "0.001 (at an end)" in down


def test_a_difference_is_told_for_each_doubling_as_in_a_fit_of_method_rank_and_their_interaction() -> None:
    generator = np.random.default_rng(2)
    ranks, seeds = (2, 8, 32, 128), (0, 1, 2, 3)
    losses = {
        (method, rank, seed): 1.2 - 0.01 * np.log2(rank) + (method == "dual_lora") * (0.004 * np.log2(rank) - 0.01)
        + 0.01 * generator.normal()
        for method in ("lora", "dual_lora") for rank in ranks for seed in seeds
    }  # fmt: skip
    records = [record(method, seed, loss, r=rank) for (method, rank, seed), loss in losses.items()]
    named = Endpoint("loss", report_builder.BEGUN)
    asked = Trend("difference", "loss", "method.r", margin=0.001)
    [text] = said(records, asked, "method.r", "2,8,32,128", reference="lora", endpoint=named)
    assert text.startswith("loss, Dual LoRA minus LoRA, for each doubling of the r: ")
    design = [
        [1, np.log2(rank), method == "dual_lora", (method == "dual_lora") * np.log2(rank)] for method, rank, _ in losses
    ]
    interaction = np.linalg.lstsq(np.array(design, dtype=float), np.array(list(losses.values())), rcond=None)[0][3]
    slopes = [
        stats.linregress(
            np.log2(ranks), [losses["dual_lora", rank, seed] - losses["lora", rank, seed] for rank in ranks]
        ).slope
        for seed in seeds
    ]
    test = stats.ttest_1samp(slopes, 0)
    interval = test.confidence_interval()
    equal = max(
        stats.ttest_1samp(slopes, -0.001, alternative="greater").pvalue,
        stats.ttest_1samp(slopes, 0.001, alternative="less").pvalue,
    )
    expected = [interaction, interval.low, interval.high, test.pvalue, equal]
    assert numbers(text) == pytest.approx(expected, abs=6e-6, rel=2e-2)
    assert "4 seeds" in text
    assert text.endswith("; gains with size."), "here a higher one is better"
    late = Endpoint("loss", report_builder.BEGUN + timedelta(days=9999))
    [text] = said(records, asked, "method.r", "2,8,32,128", reference="lora", endpoint=late)
    assert text.endswith("; runs from before the endpoint was named: no verdict.")
    flat = [record(method, seed, 1.2 + 1e-5 * seed * rank / 128, r=rank) for method, rank, seed in losses]
    [text] = said(flat, asked, "method.r", "2,8,32,128", reference="lora", endpoint=named)
    assert text.endswith("; no change with size within ± 0.001.")


@pytest.mark.parametrize(("shift", "verdict"), [(-0.01, "better"), (0.01, "worse"), (0.0, "no difference is shown")])
def test_where_the_reference_is_better_at_the_other_rate_the_difference_there_is_to_be_quoted(
    shift: float, verdict: str
) -> None:
    generator = np.random.default_rng(3)
    losses = {
        (method, rate): 1.2
        + shift * (rate == 8e-3)
        - 0.005 * (method == "dual_lora")
        + 0.002 * generator.normal(size=8)
        for method in ("lora", "dual_lora")
        for rate in (4e-3, 8e-3)
    }
    records = [
        record(method, seed, float(loss), rate=rate)
        for (method, rate), values in losses.items()
        for seed, loss in enumerate(values)
    ]
    lower = replace(LOSS, better="lower")
    sweep = {"model": ("smollm2",), "task": ("e2e",), "method": ("lora", "dual_lora"), "protocol": ("strict",)}
    sweep |= {"profile": ("study",), "recipe.learning_rate": ("4e-3", "8e-3"), "seed": tuple(map(str, range(8)))}
    block = Block(
        block="b", columns=(lower,), reference="lora", endpoint=Endpoint("loss", report_builder.BEGUN, margin=0.004),
        trend=Trend("reference", "loss", "recipe.learning_rate", revises="made", result="E1's lead"),
    )  # fmt: skip

    def told(records: list[Record]) -> list[str]:
        found = measured.block(Experiment("made", sweep, block), records)
        name = "{} (at {})"
        return trend.sentences(
            found,
            lambda experiment, part, row: name.format(NAMES[row.choices[part]], row.choices["recipe.learning_rate"]),
            endpoint.compare([found]),
        )

    [text] = told(records)
    assert trend.is_smaller(measured.block(Experiment("made", sweep, block), records)) == (verdict == "better")
    first, second = losses["lora", 4e-3], losses["lora", 8e-3]
    test = stats.ttest_rel(second, first)
    interval = test.confidence_interval()
    start, _, rest = text.partition(" (of this test alone): ")
    assert start.startswith("loss, LoRA (at 8e-3) minus LoRA (at 4e-3): ")
    assert numbers(start)[:3] == pytest.approx([float(np.mean(second - first)), interval.low, interval.high], abs=6e-6)
    assert ("p < 0.001" in start) == (test.pvalue < 0.001)
    expected = []
    for theirs in (first, second)[: 1 + (verdict == "better")]:
        ours = losses["dual_lora", 8e-3] - theirs
        expected += [ours.mean(), *stats.ttest_1samp(ours, 0).confidence_interval()]
    assert numbers(rest) == pytest.approx(expected, abs=6e-6)
    if verdict == "better":
        assert rest.startswith("better. E1's lead is smaller than told: Dual LoRA (at 8e-3) minus LoRA (at 4e-3) is ")
        assert " on these seeds; to be quoted is Dual LoRA (at 8e-3) minus LoRA (at 8e-3), " in rest
        assert rest.endswith(", better.")
    else:
        assert rest.startswith(f"{verdict}. That rate takes nothing from E1's lead: Dual LoRA (at 8e-3) minus LoRA")
    assert told([one for one in records if one.seed != 7]) == [], "nothing before all seeds are there"


def test_a_trend_of_what_is_not_swept_is_refused(tmp_path: Path) -> None:
    text = report_builder.EXPERIMENT
    for given, message in (
        ("{of: difference, column: BoolQ, over: method.r}", "over must be a setting of the sweep"),
        ("{of: best rate, column: BoolQ, over: seed, against: dora}", "against='dora'"),
        ("{of: reference, column: BoolQ, over: seed, revises: it}", "needs two values of seed"),
    ):
        (tmp_path / "made.yaml").write_text(f"{text}  trend: {given}\n")
        with pytest.raises(DefinitionError, match=message):
            definition.read(tmp_path / "made.yaml")
