"""What a record keeps per item gives its metrics again, and the noise of the test items is what theory says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import matthews_corrcoef

from dual_lora.metrics import mteval
from dual_lora.records import per_item
from dual_lora.report import definition, item_noise, measured
from tests import ROOT, committed
from tests.unit.report.report_builder import EXPERIMENT, ours, record

GENERATOR = np.random.default_rng(5)


def once(metric: str, rows) -> float:
    [found] = item_noise.value(metric, per_item.unpacked(per_item.packed(rows)), np.ones((1, len(rows))))
    return float(found)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([True, False, True], "b1 3x1"),
        ([(True, False)] * 11, "b1 11x2"),
        ([(3, 0, 255)] * 2, "u1 2x3"),
        ([(3, 0, 256)] * 2, "u2 2x3"),
        ([(0.5, 2.0)] * 4, "f2 4x2"),
        ([-1, 2], "f2 2x1"),
    ],
)
def test_rows_come_back_as_they_were(rows, kind):
    text = per_item.packed(rows)
    assert text.startswith(f"{kind} ")
    assert (per_item.unpacked(text) == np.asarray(rows, float).reshape(len(rows), -1)).all()


@pytest.mark.parametrize("text", ["", "f8 2x1 AAAA", "u1 x1 AAAA", "u1 2x1 A", "u1 4x1 AAAA"])
def test_rows_that_are_damaged_are_refused(text):
    with pytest.raises(ValueError, match=r"per-item|base64|cannot reshape|padding|multiple of 4"):
        per_item.unpacked(text)


def test_an_average_of_right_answers():
    right = list(GENERATOR.random(400) < 0.7)
    assert once("accuracy", right) == pytest.approx(np.mean(right))


def test_matthews_coefficient_is_scikit_learns():
    rows = GENERATOR.random((400, 2)) < (0.6, 0.4)
    rows[:150, 1] = rows[:150, 0]
    assert once("matthews_correlation", rows.tolist()) == pytest.approx(matthews_corrcoef(rows[:, 1], rows[:, 0]))
    assert once("matthews_correlation", [(True, False), (True, True)]) == 0  # a constant prediction, as scikit-learn


def test_pearsons_correlation_is_scipys():
    x = GENERATOR.random(400) * 5
    y = np.round(x + GENERATOR.normal(0, 1, 400), 1)
    assert once("pearson", np.stack([x, y], 1)) == pytest.approx(scipy_stats.pearsonr(x, y).statistic, abs=1e-4)


def test_a_loss_is_over_all_tokens_together():
    nats, tokens = GENERATOR.random(400) * 40, GENERATOR.integers(1, 60, 400)
    assert once("loss", np.stack([nats, tokens], 1)) == pytest.approx(nats.sum() / tokens.sum(), rel=1e-4)


WORDS = ["the", "a", "pub", "called", "Blue", "Spice", "is", "in", "city", "near", "cheap", "food", ",", "."]


def texts(number: int, longest: int) -> list[str]:
    lengths = GENERATOR.integers(0, longest, number)
    return [" ".join(GENERATOR.choice(WORDS, length)) for length in lengths]


@pytest.mark.parametrize("longest", [2, 4, 12])  # short: orders without a match, and without n-grams
def test_bleu_is_the_scorers_for_any_draw_of_items(longest):
    predictions = texts(30, longest)
    references = [[f"{a} .", b] for a, b in zip(texts(30, longest), texts(30, longest), strict=True)]
    rows = per_item.unpacked(per_item.packed(mteval.bleu_counts(predictions, references)))
    weights = GENERATOR.multinomial(30, np.full(30, 1 / 30), size=5)
    for draw, found in zip(weights, item_noise.value("BLEU", rows, weights.astype(float)), strict=True):
        drawn = [place for place, times in enumerate(draw) for _ in range(times)]
        chosen = [predictions[place] for place in drawn], [references[place] for place in drawn]
        assert found == pytest.approx(mteval.bleu_and_nist(*chosen)[0], abs=1e-12)


@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation", "pearson", "loss", "BLEU"])
def test_several_runs_at_once_are_each_alone(metric):
    rows = GENERATOR.integers(0, 2 if metric.startswith(("acc", "matt")) else 9, (3, 50, 6)).astype(float)
    rows = rows if metric == "BLEU" else rows[:, :, :2]
    weights = GENERATOR.multinomial(50, np.full(50, 1 / 50), size=4).astype(float)
    found = item_noise.value(metric, rows, weights)
    assert found.shape == (3, 4)
    for run, scores in zip(rows, found, strict=True):
        assert scores == pytest.approx(item_noise.value(metric, run, weights), abs=1e-12)


@pytest.mark.parametrize("patterns", [3, 30])
def test_both_ways_of_drawing_items_are_multinomial(patterns):
    which = np.arange(60) % patterns  # 60 / 3: by the counts; 60 / 30: by the items
    drawn = item_noise._weights(np.random.default_rng(0), which, patterns, 20_000)
    assert (drawn.sum(axis=1) == 60).all()
    share = 1 / patterns
    assert drawn.mean(axis=0) == pytest.approx(np.full(patterns, 60 * share), rel=0.03)
    assert drawn.var(axis=0) == pytest.approx(np.full(patterns, 60 * share * (1 - share)), rel=0.06)
    assert np.cov(drawn[:, 0], drawn[:, 1])[0, 1] == pytest.approx(-60 * share**2, abs=0.06 * 60 * share)


def test_mid_p_is_the_exact_test_with_half_of_the_observed_tables_probability():
    """Fagerland, Lydersen and Laake (2013): 1 and 7 discordant pairs, exact p 0.070, mid-p 0.039."""
    assert item_noise.mid_p(1, 7) == pytest.approx(0.039, abs=5e-4)
    assert scipy_stats.binomtest(1, 8, 0.5).pvalue == pytest.approx(0.070, abs=5e-4)
    exact = scipy_stats.binomtest(9, 30, 0.5).pvalue
    assert (
        item_noise.mid_p(9, 21) == item_noise.mid_p(21, 9) == pytest.approx(exact - scipy_stats.binom.pmf(9, 30, 0.5))
    )
    assert item_noise.mid_p(5, 5) <= 1
    assert item_noise.mid_p(0, 0) == 1


def with_items(method: str, seed: int, right: np.ndarray, subset: str = "boolq") -> dict:
    value = record(method, seed, {subset: float(right.mean())}, items=len(right))
    value["scores"]["per_item"] = {"last.test.generate": {"accuracy": {subset: per_item.packed(right.tolist())}}}
    return value


def draw(generator: np.random.Generator, effect: float, seeds: int = 4, number: int = 500) -> list[dict]:
    """Two methods whose answers agree where an item is easy for both."""
    easy, values = generator.random(number), []
    for seed in range(seeds):
        for method, shift in (("lora", 0.0), ("dual_lora", effect)):
            values.append(with_items(method, seed, easy + generator.normal(0, 0.1, number) < 0.6 + shift))
    return values


ALONE = EXPERIMENT.replace("    - {label: PIQA, subset: piqa}\n    - {label: Avg., average: true}\n", "")


def test_the_noise_of_items_is_the_binomial_and_the_paired_one(build):
    values = draw(np.random.default_rng(1), 0.0)
    found = ours(build(*values, text=ALONE), "DUAL_LORA").cells[0].comparison.items
    share = values[0]["scores"]["measurements"][0]["metrics"]["accuracy"]
    assert found.one == pytest.approx(100 * (share * (1 - share) / 500) ** 0.5, rel=0.08)
    rows = [np.array([per_item.unpacked(v["scores"]["per_item"]["last.test.generate"]["accuracy"]["boolq"])[:, 0]
                      for v in values[place::2]]).mean(axis=0) for place in (1, 0)]  # fmt: skip
    assert found.pair == pytest.approx(100 * (rows[0] - rows[1]).std() / 500**0.5, rel=0.08)
    assert found.pair < found.one


def test_the_interval_over_items_and_seeds_covers_the_truth(build):
    """Both sources of noise: 40 items and 6 seeds of a difference whose expectation is known by a large sample."""
    big = draw(np.random.default_rng(2), 0.1, seeds=1, number=200_000)
    shares = [v["scores"]["measurements"][0]["metrics"]["accuracy"] * 100 for v in big]
    truth, covered = shares[1] - shares[0], 0
    for trial in range(60):
        values = draw(np.random.default_rng(100 + trial), 0.1, seeds=6, number=60)
        found = ours(build(*values, text=ALONE), "DUAL_LORA").cells[0].comparison.items
        covered += found.low <= truth <= found.high
    assert covered >= 50  # 57 expected; 49 or fewer happen once in a thousand times


def test_mcnemar_pools_the_answers_of_all_seeds(build):
    right = np.array([True] * 300 + [False] * 100)
    other = right.copy()
    other[[0, 1, 2, 399]] = ~other[[0, 1, 2, 399]]
    values = [with_items("lora", seed, right) for seed in range(2)] + [
        with_items("dual_lora", seed, other) for seed in range(2)
    ]
    table = build(*values, text=ALONE)
    assert ours(table, "DUAL_LORA").cells[0].comparison.items.mcnemar == pytest.approx(item_noise.mid_p(2, 6))
    [finding] = table.blocks[0].findings
    assert "McNemar mid-p = " in finding
    assert "by the draw of test items one run has sd 2." in finding
    assert "[" not in finding, "two pairs of runs have no interval"


def test_an_average_draws_the_items_of_each_subset(build):
    text = EXPERIMENT.replace("{column: BoolQ", "{column: Avg.")
    values = []
    for seed in range(3):
        for method, hits in (("lora", 300), ("dual_lora", 320)):
            value = record(method, seed, {"boolq": hits / 400, "piqa": 0.5})
            kept = {"boolq": [True] * hits + [False] * (400 - hits), "piqa": [True, False] * 50}
            packed = {subset: per_item.packed(rows) for subset, rows in kept.items()}
            for entry in value["scores"]["measurements"]:
                entry["items"] = len(kept[entry["subset"]])
            value["scores"]["per_item"] = {"last.test.generate": {"accuracy": packed}}
            values.append(value)
    found = ours(build(*values, text=text), "DUAL_LORA").cells[2].comparison.items
    variance = (0.75 * 0.25 / 400 + 0.5 * 0.5 / 100) / 4
    assert found.one == pytest.approx(100 * variance**0.5, rel=0.08)
    assert found.low < 2.5 < found.high
    assert found.mcnemar == pytest.approx(item_noise.mid_p(60, 0))


def test_records_without_items_render_as_before(build):
    values = draw(np.random.default_rng(1), 0.0)
    del values[-1]["scores"]["per_item"]
    table = build(*values, text=ALONE)
    assert ours(table, "DUAL_LORA").cells[0].comparison.items is None
    assert "items" not in table.blocks[0].findings[0]


def test_the_checkpoint_that_a_table_shows_is_kept_and_measurements_stay_numbers():
    entry = {"subset": "a", "metrics": {"accuracy": 0.5}, "per_item": {"accuracy": [True, False]}}
    test = [{**entry, "checkpoint": name, "split": "test", "scoring": "cloze"} for name in ("last", "best_loss")]
    loss = {**entry, "checkpoint": "last", "split": "validation", "scoring": "loss", "per_item": {"loss": [(1.5, 3)]}}
    held_out = {**entry, "checkpoint": "best_loss", "split": "validation", "scoring": "classify"}
    plain, found = per_item.apart([*test, loss, held_out], "best_loss")
    assert [set(kept) for kept in plain] == [{"subset", "metrics", "checkpoint", "split", "scoring"}] * 4
    assert found == {
        "best_loss.test.cloze": {"accuracy": {"a": per_item.packed([True, False])}},
        "last.validation.loss": {"loss": {"a": per_item.packed([(1.5, 3)])}},
    }


def test_committed_records_give_their_scores_again_from_their_items():
    checked = 0
    for found in committed.typed():
        for entry in found.scores.measurements:
            kept = found.scores.per_item.get(per_item.predictions(entry.checkpoint, entry.split, entry.scoring), {})
            for metric in kept:
                if entry.subset in kept[metric]:
                    stated = entry.metrics[metric]
                    again = again_of(metric, kept[metric][entry.subset])
                    assert again == pytest.approx(0 if stated is None else stated, abs=2e-3), (found.run_id, metric)
                    checked += 1
    assert checked >= 10


def again_of(metric: str, text: str) -> float:
    rows = per_item.unpacked(text)
    [found] = item_noise.value(metric, rows, np.ones((1, len(rows))))
    return float(found)


def test_e2e_has_the_item_noise_of_an_audit():
    """Its bootstrap over the 630 inputs, of public outputs: 0.80 BLEU of one run, 0.23 to 0.39 of a pair."""
    experiment = definition.read(ROOT / "experiments" / "nlg_smollm2.yaml")
    block = measured.block(experiment, committed.typed())
    rows = {row.choices["method"]: row for row in block.rows}
    found = item_noise.noise(experiment, experiment.block.columns[0], rows["dual_lora"], rows["lora"])
    assert found is not None
    assert found.one == pytest.approx(0.80, abs=0.05)
    assert found.pair < 0.39  # of the mean of several pairs
