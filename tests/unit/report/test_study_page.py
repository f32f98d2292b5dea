"""The number of seeds that docs/study.md says its rule asks for, from the records alone."""

from __future__ import annotations

import re

import numpy as np
from scipy import stats

from tests import ROOT, committed

ROW = re.compile(r"\| (E\d): (\w+) − (\w+) \| ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \|")


def losses() -> dict[str, dict[int, float]]:
    """Return method -> seed -> loss per answer token on the pairs that report."""
    found: dict[str, dict[int, float]] = {}
    for values in committed.values():
        identity = values["identity"]
        named = (identity["task"]["name"], identity["profile"]["name"], identity["protocol"].get("validation_part"))
        profile = (identity["profile"]["train_examples"], identity["profile"]["test_items"])
        if values["status"] == "finished" and named == ("e2e", "study", "report") and profile == (16000, None):
            (measured,) = [m for m in values["scores"]["measurements"] if m["split"] == "validation"]
            found.setdefault(identity["method"]["name"], {})[identity["seed"]] = measured["metrics"]["loss"]
    return found


def power(sd: float, pairs: int, difference: float) -> float:
    """Return the power of a paired t test at 5 % from the noncentral t."""
    critical = stats.t.isf(0.025, pairs - 1)
    return float(stats.nct.sf(critical, pairs - 1, difference * np.sqrt(pairs) / sd))


def test_the_seeds_that_the_rule_asks_for_are_those_of_the_first_six_pairs() -> None:
    rows = ROW.findall((ROOT / "docs" / "study.md").read_text(encoding="utf-8"))
    assert len(rows) == 4 + 7
    measured = losses()
    for experiment, ours, theirs, difference, planned, asked, by_rule in rows:
        pairs = [measured[ours][seed] - measured[theirs][seed] for seed in range(6)]
        sd = float(np.std(pairs, ddof=1))
        wanted = next(n for n in range(2, 500) if power(sd, n, float(difference)) >= 0.8)
        assert wanted == int(asked), (experiment, ours)
        assert int(by_rule) == min(max(wanted, int(planned)), 2 * int(planned)), (experiment, ours)
