"""Packed factors: the same numbers as unpacked ones, and kept only as long as they are true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import make_case, relative_error

from dual_lora.kernels import dual_lora_linear

pytestmark = pytest.mark.triton


@pytest.fixture
def packing(fused_device: str) -> Any:
    from dual_lora.kernels import packing

    return packing


@pytest.mark.parametrize(
    ("in_features", "out_features", "ranks", "tokens"),
    [(70, 90, (3, 16), 70), (260, 30, (17, 20), 5), (96, 70, (40, 33), 70)],
)
def test_packing_changes_no_bit(
    packing: Any,
    fused_device: str,
    monkeypatch: pytest.MonkeyPatch,
    in_features: int,
    out_features: int,
    ranks: tuple[int, int],
    tokens: int,
) -> None:
    case = make_case((tokens,), in_features, out_features, ranks, device=fused_device)
    plain = case.run("fused")
    monkeypatch.setattr(packing, "PACK_ELEMENTS", 0)
    packed = case.run("fused")
    assert all(torch.equal(plain[name], packed[name]) for name in plain)


def test_kept_parts_follow_the_factors(packing: Any, fused_device: str) -> None:
    case = make_case((5,), device=fused_device)
    with torch.no_grad():
        for _ in range(3):
            y = dual_lora_linear(case.x, case.weight, None, *case.factors, 0.7, kernel="fused")
            truth = dual_lora_linear(case.x, case.weight, None, *case.factors, 0.7, kernel="reference")
            assert relative_error(y, truth) < 2e-6
            assert packing.prepare(tuple(case.factors), reuse=True) is packing.prepare(tuple(case.factors), reuse=True)
            case.factors[2].mul_(-0.5)
            case.factors[1].add_(0.1)
