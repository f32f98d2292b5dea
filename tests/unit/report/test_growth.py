"""Best rates and slopes that were planted are found again."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from dual_lora.records import per_item
from dual_lora.report import best_rate, stats
from tests.unit.page.page_builder import workspace
from tests.unit.report.report_builder import EXPERIMENT, record
from tests.unit.report.test_findings import found

RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
SIGMA = """
hydra:
  sweeper:
    params:
      model: smollm2
      task: commonsense
      method: {methods}
      method.init_std: 0.01,0.02,0.04
      recipe.learning_rate: 2e-3,4e-3,8e-3,1.6e-2,3.2e-2
      protocol: strict
      profile: study
      seed: 0
table:
  title: Rate and σ
  block: Rates
  columns: [{{label: loss, subset: all, scoring: loss, split: validation, metric: loss, scale: 1, better: lower}}]
  figure: {{x: recipe.learning_rate, column: loss, log_x: true}}
"""


def with_items(method: str, rate: float, sigma: float, best: float, items: int = 400) -> dict:
    """Return a run whose loss is a parabola over log2 of the rate, each item's lowest a little elsewhere."""
    generator = np.random.default_rng(1)
    shifts, tokens = generator.normal(0, 1, items), generator.integers(5, 20, items)
    shifts -= (shifts * tokens).sum() / tokens.sum()
    nats = tokens * (1 + 0.1 * (np.log2(rate) - np.log2(best) - shifts) ** 2)
    made = record(method, 0, {"all": float(nats.sum() / tokens.sum())}, metric="loss", learning_rate=rate)
    made["identity"]["method"]["settings"]["init_std"] = sigma
    made["scores"]["measurements"][0] |= {"split": "validation", "scoring": "loss"}
    made["scores"]["headline"]["scoring"] = "loss"
    rows = np.stack([nats, tokens], axis=1)
    made["scores"]["per_item"] = {
        per_item.predictions("last", "validation", "loss"): {"loss": {"all": per_item.packed(rows)}}
    }
    return made


def test_a_planted_best_rate_slope_and_ratio_are_found(tmp_path):
    """Dual LoRA's best grows with the root of σ and is 1.7 times LoRA's, whose best does not grow."""
    runs = [
        with_items(method, rate, sigma, best)
        for sigma in (0.01, 0.02, 0.04)
        for method, best in (("lora", 0.006), ("dual_lora", 1.7 * 0.006 * (sigma / 0.02) ** 0.5))
        for rate in RATES
    ]
    part = found(workspace(tmp_path, *runs, text=SIGMA.format(methods="lora,dual_lora"))).part("table_x").splitlines()
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[3]
        for line in part
        if "| init std" in line
    }
    for sigma in (0.01, 0.02, 0.04):
        value, low, high = map(
            float, rows["DUAL_LORA", f"init std {sigma}"].replace("\\[", "").replace("\\]", "").replace(",", "").split()
        )
        assert value == pytest.approx(1.7 * 0.006 * (sigma / 0.02) ** 0.5, rel=0.01)
        assert low < value < high < 1.3 * low
    assert any("DUAL_LORA: slope of log best rate over log init std 0.50" in line for line in part)
    assert any("DUAL_LORA's best rate over LORA's, init std 0.02: 1.70" in line for line in part)
    assert not any("at an end" in line for line in part)


def test_a_best_at_an_end_is_called_one(tmp_path):
    runs = [with_items("dual_lora", rate, 0.01, 0.2) for rate in RATES]
    part = found(workspace(tmp_path, *runs, text=SIGMA.format(methods="dual_lora"))).part("table_x")
    assert "| DUAL_LORA | init std 0.01 | 0.032 \\[0.032, 0.032\\] | at an end of its grid |" in part


def test_the_lowest_point_of_a_parabola_is_exact_and_stays_in_the_grid():
    x = np.arange(5.0)
    losses = np.stack([(x - 1.3) ** 2, (x - 3.4) ** 2, x, -x, np.ones(5)], axis=1)
    assert best_rate.lowest(x, losses)[:4] == pytest.approx([1.3, 3.4, 0, 4])


def test_the_interval_over_items_is_that_of_many_samples_of_items():
    """The spread of the best rate over new samples of items, against the spread over draws of one sample."""
    generator = np.random.default_rng(0)
    x = np.log2(RATES)

    def lowest(shifts: np.ndarray) -> float:
        losses = ((x[:, None] + 7 - shifts) ** 2).mean(axis=1)
        return float(best_rate.lowest(x, losses[:, None])[0])

    truth = np.std([lowest(generator.normal(0, 0.5, 300)) for _ in range(500)])
    one = generator.normal(0, 0.5, 300)
    drawn = np.std([lowest(generator.choice(one, 300)) for _ in range(500)])
    assert drawn == pytest.approx(truth, rel=0.2)


def test_how_a_difference_grows_with_each_doubling_is_a_slope_of_each_seed(tmp_path):
    noise = {2: (0.1, -0.2, 0.3), 8: (0.0, 0.2, -0.1), 32: (-0.2, 0.1, 0.1)}
    points = {
        size: {seed: 0.5 * np.log2(size) + value for seed, value in enumerate(own)} for size, own in noise.items()
    }
    slopes = [scipy.stats.linregress([1, 3, 5], [points[size][seed] for size in (2, 8, 32)]).slope for seed in range(3)]
    test = scipy.stats.ttest_1samp(slopes, 0).confidence_interval()
    assert stats.doubling(points).mean == pytest.approx(np.mean(slopes))
    assert stats.doubling(points).interval() == pytest.approx(tuple(test))
    assert stats.doubling({2: points[2], 8: points[8]}) is None

    text = EXPERIMENT.replace("seed: 0,1,2,3,4,5", "seed: 0,1,2\n      method.r: 2,8,32")
    runs = []
    for size, own in points.items():
        for seed, difference in own.items():
            runs += [
                record("lora", seed, {"boolq": 0.6, "piqa": 0.7}),
                record("dual_lora", seed, {"boolq": 0.6 + difference / 100, "piqa": 0.7}),
            ]
            for made in runs[-2:]:
                made["identity"]["method"]["settings"]["r"] = size
    part = found(workspace(tmp_path, *runs, text=text)).part("table_x")
    shown = f"{np.mean(slopes):+.3f} \\[{test[0]:+.3f}, {test[1]:+.3f}\\]".replace("-", "−")
    assert f"DUAL_LORA minus LORA in BoolQ changes by {shown} with each doubling of r (3 seeds)." in part
