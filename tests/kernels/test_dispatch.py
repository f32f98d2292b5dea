"""Which kernel runs where, and that no request is quietly replaced by another."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from dual_lora.kernels import dispatch, resolve_kernel, select_kernel
from tests.kernels.cases import make_case

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_decided_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for decision in (dispatch._select, dispatch._resolve):
        decision.cache_clear()
    yield
    for decision in (dispatch._select, dispatch._resolve):
        decision.cache_clear()


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, triton: bool = True) -> torch.device:
    """A CUDA device of some capability, as far as the decision looks at it."""
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
    return torch.device("cuda", 0)


@pytest.mark.parametrize("triton", [True, False], ids=["triton", "no-triton"])
def test_auto_on_a_cpu_is_generic_and_fused_is_an_error(monkeypatch: pytest.MonkeyPatch, triton: bool) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object() if triton else None)
    assert resolve_kernel("auto", CPU) == "generic"
    assert select_kernel("auto", CPU).name == "generic"
    obstacle = "CUDA device, and the tensors are on 'cpu'" if triton else "triton is not installed"
    with pytest.raises(ValueError, match=f"kernel='fused' cannot run: .*{obstacle}.*use kernel='auto'"):
        make_case().run("fused")


def test_auto_on_a_cpu_is_generic_in_the_interpreter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_kernel("auto", CPU) == "generic"
    assert resolve_kernel("fused", CPU) == "fused"


def test_auto_on_a_card_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_kernel("auto", card(monkeypatch, (8, 0))) == "fused"


@pytest.mark.parametrize(("capability", "triton"), [((7, 5), True), ((9, 0), False)], ids=["old-card", "no-triton"])
def test_a_card_that_cannot_run_triton_falls_back_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int], triton: bool
) -> None:
    device = card(monkeypatch, capability, triton=triton)
    with caplog.at_level(logging.WARNING):
        assert [resolve_kernel("auto", device) for _ in range(3)] == ["generic"] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once, not at every call"
    with pytest.raises(ValueError, match="kernel='fused' cannot run"):
        resolve_kernel("fused", device)


@pytest.mark.parametrize(
    "obstacle", [{"weight_is_plain": False}, {"dropout": 0.1}, {"active_adapters": 2}], ids=lambda o: next(iter(o))
)
def test_what_one_gemm_cannot_do_takes_two_or_is_refused(monkeypatch: pytest.MonkeyPatch, obstacle: dict) -> None:
    device = card(monkeypatch, (9, 0))
    assert select_kernel("auto", device).name == "fused"
    assert select_kernel("auto", device, **obstacle).name == "fused, separate update"
    assert select_kernel("generic", device).name == "generic, separate update"
    with pytest.raises(ValueError, match="needs one GEMM with W0 [+] dW, but .*use kernel='auto' or 'generic'"):
        select_kernel("fused", device, **obstacle)


def test_an_unknown_name_lists_the_legal_ones() -> None:
    with pytest.raises(ValueError, match="kernel='triton' is not known; use one of 'auto', 'fused'"):
        select_kernel("triton", CPU)
