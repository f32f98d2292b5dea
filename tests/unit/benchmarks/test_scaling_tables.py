"""What several GPUs gave, as text."""

from __future__ import annotations

import json

from dual_lora.benchmarks.scaling_tables import section
from tests import ROOT


def test_a_killed_group_is_told_of_before_its_continuation_is_there() -> None:
    """A command that is cut off keeps the seconds of the end."""
    found = json.loads((ROOT / "results" / "benchmarks" / "scaling.json").read_text(encoding="utf-8"))
    whole = found["2"]["killed"]
    cut_off = {
        key: value for key, value in whole.items() if key not in ("curve", "undisturbed", "resumed_from", "same_scores")
    }
    told = section({"2": {"environment": found["2"]["environment"], "killed": cut_off}})
    assert f"all processes were gone after {whole['seconds_until_all_gone']:.1f} s (limit 60 s)" in told
    assert told.endswith("Its continuation was not measured.")
    told = section({"2": {"environment": found["2"]["environment"], "killed": whole}})
    assert "The same command continued from step 40" in told
