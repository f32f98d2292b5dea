"""What docs/study.md says of seeds, and docs/evidence.md of all experiments at once, from the records alone."""

from __future__ import annotations

import re

import numpy as np
from scipy import stats

from tests import ROOT, committed

ROW = re.compile(r"\| (E\d+): (\w+) − (\w+)(?: at (\S+))? \| ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \|")
# Task, training examples, test items of a subset and first seed of each experiment's reported runs.
RUNS: dict[str, tuple[str, int, int | None, int]] = {
    "E1": ("e2e", 16_000, None, 0),
    "E3": ("e2e", 16_000, None, 0),
    "E7": ("commonsense", 16_000, 1000, 0),
    "E8": ("e2e", 16_000, None, 20),
    "E9": ("e2e", 42_061, 0, 0),
    "E10": ("e2e", 16_000, 0, 30),
}


def losses(experiment: str, rate: str) -> dict[str, dict[int, float]]:
    """Return method -> place of the seed -> loss per answer token on the items that report."""
    found: dict[str, dict[int, float]] = {}
    task, examples, items, first = RUNS[experiment]
    for values in committed.values():
        identity = values["identity"]
        named = (identity["task"]["name"], identity["profile"]["name"], identity["protocol"].get("validation_part"))
        profile = (identity["profile"]["train_examples"], identity["profile"]["test_items"])
        place, wanted = identity["seed"] - first, named == (task, "study", "report") and profile == (examples, items)
        wanted = wanted and (not rate or identity["recipe"]["learning_rate"] == float(rate))
        if values["status"] == "finished" and wanted and 0 <= place < 10:
            (measured,) = [m for m in values["scores"]["measurements"] if m["split"] == "validation"]
            assert place not in found.setdefault(identity["method"]["name"], {}), identity["run_id"]
            found[identity["method"]["name"]][place] = measured["metrics"]["loss"]
    return found


def power(sd: float, pairs: int, difference: float) -> float:
    """Return the power of a paired t test at 5 % from the noncentral t."""
    critical = stats.t.isf(0.025, pairs - 1)
    return float(stats.nct.sf(critical, pairs - 1, difference * np.sqrt(pairs) / sd))


def test_the_seeds_that_the_rule_asks_for_are_those_of_the_first_six_pairs() -> None:
    rows = ROW.findall((ROOT / "docs" / "study.md").read_text(encoding="utf-8"))
    assert {experiment for experiment, *_ in rows} == RUNS.keys()
    assert len(rows) == 4 + 7 + 3 + 4 + 1 + 2
    for experiment, ours, theirs, rate, difference, planned, asked, by_rule in rows:
        measured = losses(experiment, rate)
        pairs = [measured[ours][seed] - measured[theirs][seed] for seed in range(6)]
        sd = float(np.std(pairs, ddof=1))
        wanted = next(n for n in range(2, 500) if power(sd, n, float(difference)) >= 0.8)
        assert wanted == int(asked), (experiment, ours)
        assert int(by_rule) == min(max(wanted, int(planned)), 2 * int(planned)), (experiment, ours)


def paired(ours: dict[int, float], theirs: dict[int, float]) -> np.ndarray:
    assert ours.keys() == theirs.keys()
    return np.array([ours[seed] - theirs[seed] for seed in sorted(ours)])


def bleu(method: str) -> dict[int, float]:
    """Return seed -> BLEU of E1's runs."""
    found: dict[int, float] = {}
    for values in committed.values():
        identity = values["identity"]
        profile = identity["profile"]
        named = (identity["task"]["name"], profile["name"], profile["train_examples"], identity["method"]["name"])
        if named == ("e2e", "study", 16_000, method) and profile["test_items"] is None and identity["seed"] < 8:
            found[identity["seed"]] = values["scores"]["headline"]["value"]
    assert len(found) == 8
    return found


def glue(method: str) -> float:
    """Return p of E2's stratified mean against LoRA's, with Satterthwaite's degrees of freedom."""
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for values in committed.values():
        identity = values["identity"]
        task, of_study = identity["task"]["name"], values["origin"]["commit"].startswith("8eb958e")
        if of_study and task.startswith("glue/") and identity["seed"] < 20:
            of_method = scores.setdefault((task, identity["method"]["name"]), {})
            of_method[identity["seed"]] = values["scores"]["headline"]["value"]
    differences = [paired(scores[task, method], scores[task, "lora"]) for task in sorted({task for task, _ in scores})]
    assert [len(pairs) for pairs in differences] == [20] * 4
    variances = [np.var(pairs, ddof=1) / 20 for pairs in differences]
    df = sum(variances) ** 2 / sum(variance**2 / 19 for variance in variances)
    return float(2 * stats.t.sf(abs(sum(map(np.mean, differences))) / np.sqrt(sum(variances)), df))


def growth() -> float:
    """Return p of E6's difference for each doubling of the trained weights."""
    found: dict[tuple[str, int, int], float] = {}
    for values in committed.values():
        identity = values["identity"]
        named = (identity["profile"]["train_examples"], identity["protocol"].get("validation_part"))
        method = identity["method"]["name"]
        if named == (8_000, "report") and identity["method"].get("budget") and method in ("lora", "dual_lora"):
            (measured,) = [m for m in values["scores"]["measurements"] if m["subset"] == "all"]
            found[method, values["cost"]["trainable_parameters"], identity["seed"]] = measured["metrics"]["loss"]
    sizes = sorted({size for _, size, _ in found})
    assert len(found) == 2 * len(sizes) * 4
    losses_of = [[found["dual_lora", size, seed] - found["lora", size, seed] for seed in range(4)] for size in sizes]
    return float(stats.ttest_1samp(np.polyfit(np.log2(sizes), losses_of, 1)[0], 0).pvalue)


def test_what_stays_if_all_experiments_are_corrected_at_once() -> None:
    p = {"E6": growth()}
    for experiment, ours, theirs, rate, _, planned, *_ in ROW.findall((ROOT / "docs" / "study.md").read_text("utf-8")):
        of = losses(experiment, rate)
        pairs = [of[ours][place] - of[theirs][place] for place in range(int(planned))]
        p[f"{experiment} {ours} {theirs} {rate}".strip()] = float(stats.ttest_1samp(pairs, 0).pvalue)
    for method in ("dora", "lora_half_rank", "dual_lora", "dual_lora_neither"):
        p[f"E1 BLEU {method}"] = float(stats.ttest_1samp(paired(bleu(method), bleu("lora")), 0).pvalue)
    for method in ("full", "dora", "dual_lora", "dual_lora_neither"):
        p[f"E2 {method}"] = glue(method)
    text = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert f"all {len(p)} comparisons with a verdict" in " ".join(text.split())
    stay = set()
    for place, name in enumerate(sorted(p, key=lambda name: p[name])):
        if p[name] * (len(p) - place) >= 0.05:
            break
        stay.add(name)
    assert stay == {
        *("E1 dual_lora lora", "E7 dual_lora lora", "E8 dual_lora_std_0_08 lora"),
        *("E3 lora dual_lora", "E3 lora_half_rank dual_lora", "E3 dual_lora_neither dual_lora"),
        *("E2 full", "E2 dora", "E2 dual_lora_neither"),
    }
