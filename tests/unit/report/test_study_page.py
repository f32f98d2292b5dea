"""The number of seeds that docs/study.md says its rule asks for, from the records alone."""

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
