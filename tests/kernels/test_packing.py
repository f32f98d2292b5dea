"""Packed factors: the same numbers as unpacked ones, made from the factors as they are now."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch

from dual_lora.kernels import dual_lora_linear, packed_once
from tests.kernels.cases import make_case, relative_error

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


def _uncounted(write: str, factors: list[torch.Tensor]) -> None:
    """Change all factors in a way that leaves their `_version` as it is."""
    versions = [factor._version for factor in factors]
    if write == "fused AdamW":
        parameters = [factor.requires_grad_() for factor in factors]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(parameters, lr=0.3, fused=True).step()
    else:
        for factor in factors:
            factor.data.mul_(-0.5).add_(0.1)
    assert [factor._version for factor in factors] == versions, "torch counts these changes now"


@pytest.mark.parametrize("write", ["fused AdamW", "data"])
@pytest.mark.parametrize("tokens", [5, 70])
def test_a_forward_follows_factors_that_changed_uncounted(
    packing: Any, fused_device: str, monkeypatch: pytest.MonkeyPatch, write: str, tokens: int
) -> None:
    """A Trainer evaluates, steps with fused AdamW and evaluates again: the second time it must see the new weights."""
    monkeypatch.setattr(packing, "PACK_ELEMENTS", 0)
    case = make_case((tokens,), device=fused_device)
    factors = [factor.detach().clone() for factor in case.factors]
    seen = []
    for _ in range(3):
        with torch.no_grad():
            y = dual_lora_linear(case.x, case.weight, None, *factors, 0.7, kernel="fused")
            truth = dual_lora_linear(case.x, case.weight, None, *factors, 0.7, kernel="reference")
        assert relative_error(y, truth) < 2e-6
        assert all(relative_error(y, before) > 1e-3 for before in seen)
        seen.append(y)
        _uncounted(write, factors)


@pytest.mark.parametrize("tokens", [5, 70])
def test_packed_once_keeps_the_parts_until_its_end_and_no_longer(
    packing: Any, fused_device: str, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(packing, "PACK_ELEMENTS", 0)
    packed = []
    pack = packing._pack
    monkeypatch.setattr(packing, "_pack", lambda factors: packed.append(factors) or pack(factors))
    case = make_case((tokens,), device=fused_device)
    factors = [torch.nn.Parameter(factor.detach().clone()) for factor in case.factors]
    other = [torch.nn.Parameter(0.5 * factor.detach()) for factor in case.factors]

    @torch.no_grad()
    def run(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
        return dual_lora_linear(case.x, case.weight, None, *parameters, 0.7, kernel="fused")

    expected = run(factors), run(other)
    packed.clear()
    with packed_once():
        for _ in range(3):
            with packed_once():  # as `generate` inside a loop of the user's
                assert torch.equal(run(factors), expected[0])
                assert torch.equal(run(other), expected[1])
        assert len(packed) == 2, "each layer's factors once"
        moved = factors[0].data.clone()
        factors[0].data = moved  # as offloading does
        assert torch.equal(run(factors), expected[0])
        assert len(packed) == 3
    _uncounted("data", [factor.data for factor in factors])
    assert not torch.equal(run(factors), expected[0])
    with packed_once():
        assert not torch.equal(run(factors), expected[0])


def test_packed_once_is_over_after_an_error_and_holds_in_its_own_thread_only(packing: Any) -> None:
    from dual_lora.kernels import factor_cache

    factors = tuple(torch.ones(2) for _ in range(4))
    seen = []

    @packed_once()
    def fail() -> None:
        factor_cache.put(factors, "made")
        seen.append(factor_cache.get(factors))
        with factor_cache.disabled():  # in compiled programs
            seen.append(factor_cache.get(factors))
        thread = Thread(target=lambda: seen.append(factor_cache.get(factors)))
        thread.start()
        thread.join()
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [*seen, factor_cache.get(factors)] == ["made", None, None, None]
