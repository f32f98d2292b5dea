"""The benchmarks of the kernels run small in Triton's interpreter and write what the committed files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dual_lora.commands import main
from tests.kernels.conftest import INTERPRETS

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not INTERPRETS, reason="Triton reads TRITON_INTERPRET as it starts: make test-interpreter"),
]


def test_kernel_benchmarks_run_in_the_interpreter(tmp_path: Path) -> None:
    """Tiny layers: the times say nothing, but each kernel is called as it is on a GPU, and no failure is a result."""
    for words in (["kernels"], ["kernels", "--device", "cpu"], ["tiles"]):
        assert main(["bench", *words, "--smoke", "--output", str(tmp_path)]) == 0
    measured = json.loads((tmp_path / "kernels.json").read_text())
    assert {"copy", "build", "reduce", "reduce_and_rebuild"} <= measured["parts"][0].keys()
    assert [row["tokens"] for row in measured["few_tokens"]] == [1, 16, 32, 64]
    assert all(row["one_kernel"]["median_ms"] > 0 for row in measured["few_tokens"])
    assert {"dual_lora", "lora", "floor"} <= measured["growth"]["rows"][0].keys()
    tiles = json.loads((tmp_path / "kernels_tiles.json").read_text())["tiles"]
    assert tiles.keys() == {"build", "reduce", "reduce_and_rebuild", "few_tokens"}
    assert all(row["median_ms"] > 0 for rows in tiles.values() for row in rows)
    cpu = json.loads((tmp_path / "kernels_cpu.json").read_text())["cpu"]
    assert cpu["time_ratio"] == cpu["tiled"]["median_ms"] / cpu["naive"]["median_ms"]
