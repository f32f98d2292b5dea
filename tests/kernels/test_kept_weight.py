"""W0 + dW kept from forward to backward: the digits of a backward pass that builds it again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dual_lora.kernels import Update, apply_update, packing, update_spec
from tests.kernels.cases import RULE_IDS, RULES, Case, make_case

SHAPES: list[dict[str, Any]] = [{"ranks": (16, 9)}, {"ranks": (20, 8), "start": True}, {"ranks": (33, 8)}]


def run(case: Case, keeps: bool, kernel: str = "fused") -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
    """Output and gradients, and the shapes of what was kept."""
    options = dict(case.options)
    start = options.pop("start", None)
    x, *factors = (leaf.detach().clone().requires_grad_() for leaf in (case.x, *case.factors))
    spec = update_spec(**options, kernel=kernel)
    update = Update((factors[0], factors[1], factors[2], factors[3]), start, 0.7, spec, keeps_weight=keeps)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        y = apply_update(x, case.weight, case.bias, update)
    grads = torch.autograd.grad(y, [x, *factors], case.grad.to(y.dtype))
    return dict(zip(("y", "x", "A", "B", "C", "D"), (y.detach(), *grads), strict=True)), saved


@pytest.mark.triton
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
def test_a_kept_weight_changes_no_digit(fused_device: str, rule: dict[str, str], shape: dict[str, Any]) -> None:
    case = make_case((40,), 70, 140, device=fused_device, seed=4, **shape, **rule)
    (found, kept), (expected, saved) = run(case, True), run(case, False)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert sorted(kept) == sorted([*saved, (140, 70)])


@pytest.mark.triton
def test_packed_factors_are_kept_with_the_weight(fused_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACK_ELEMENTS", 0)
    packings: list[int] = []
    pack = packing._pack
    monkeypatch.setattr(packing, "_pack", lambda factors: packings.append(1) or pack(factors))
    case = make_case((40,), 70, 140, (16, 9), device=fused_device)
    found, kept = run(case, True)
    assert len(packings) == 1
    assert len(kept) == len(run(case, False)[1]) + 5
    expected = run(case, False)[0]
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.triton
@pytest.mark.parametrize("words", [{"transposed": True}, {"leading": (4,)}], ids=str)
def test_what_is_never_built_is_not_kept(fused_device: str, words: dict[str, Any]) -> None:
    """A few tokens; a weight by columns, which would be read in another order."""
    case = make_case(**{"leading": (40,), **words}, in_features=70, out_features=140, device=fused_device)
    assert run(case, True)[1] == run(case, False)[1]
    assert run(case.to(torch.float32, torch.float32), True, "generic")[1] == run(case, False, "generic")[1]


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [(16, 16), (24, 16), (40, 16)], ids=str)
def test_a_kept_weight_changes_no_digit_on_a_gpu(cuda: str, ranks: tuple[int, int]) -> None:
    case = make_case((448,), 2048, 1024, ranks, dtype=torch.bfloat16, device=cuda)
    found, expected = run(case, True)[0], run(case, False)[0]
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
