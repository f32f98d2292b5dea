"""Dropout on the adapter's input: x W0^T + bias + dropout(x) dW^T in one call, against plain PyTorch and one mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dual_lora.kernels import Update, apply_update_with_dropout, reference, update_spec
from tests.kernels.cases import RULE_IDS, RULES, Case, make_case, relative_error

P = 0.3
NAMES = ("y", "x", "bias", "A", "B", "C", "D")


def leaves_of(case: Case) -> dict[str, Tensor]:
    named = {"x": case.x, "bias": case.bias, **dict(zip("ABCD", case.factors, strict=True))}
    return {name: value.detach().requires_grad_() for name, value in named.items() if value is not None}


def update_of(case: Case, leaves: dict[str, Tensor], kernel: str, keeps: bool = False) -> Update:
    options = dict(case.options)
    start = options.pop("start", None)
    factors = (leaves["A"], leaves["B"], leaves["C"], leaves["D"])
    return Update(factors, start, case.scaling, update_spec(**options, kernel=kernel), keeps_weight=keeps)


def one_call(case: Case, kernel: str, keeps: bool = False) -> dict[str, Tensor]:
    """Output and gradients, and the state of the random numbers afterwards."""
    leaves = leaves_of(case)
    torch.manual_seed(5)
    update = update_of(case, leaves, kernel, keeps)
    y = apply_update_with_dropout(leaves["x"], case.weight, leaves.get("bias"), update, P)
    return {"y": y.detach(), "drawn": torch.rand(3, device=case.x.device), **gradients(y, leaves, case)}


def formula(case: Case, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The same by plain operations and autograd; `mask`: what another dtype drew, which on a GPU depends on it."""
    leaves = leaves_of(case)
    torch.manual_seed(5)
    weight = case.weight.t() if case.options.get("transposed") else case.weight
    dropped = F.dropout(leaves["x"], P) if mask is None else leaves["x"] * mask / (1 - P)
    drawn = torch.rand(3, device=case.x.device)
    delta = reference.form_update(update_of(case, leaves, "reference"))
    y = F.linear(leaves["x"], weight, leaves.get("bias")) + F.linear(dropped, delta.to(dropped.dtype))
    return {"y": y.detach(), "drawn": drawn, **gradients(y, leaves, case)}


def exact(case: Case) -> dict[str, Tensor]:
    """The formula in float64, with the mask that the case's own dtype draws."""
    torch.manual_seed(5)
    mask = F.dropout(torch.ones_like(case.x), P) > 0
    return formula(case.to(torch.float64, torch.float64), mask)


def gradients(y: Tensor, leaves: dict[str, Tensor], case: Case) -> dict[str, Tensor]:
    found = torch.autograd.grad(y, list(leaves.values()), case.grad.to(y.dtype))
    return dict(zip(leaves, found, strict=True))


def assert_same(case: Case, kernel: str, tolerance: float = 2e-6) -> None:
    expected, found = formula(case), one_call(case, kernel)
    assert torch.equal(found.pop("drawn"), expected.pop("drawn"))
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < tolerance, errors
    assert all(found[name].shape == expected[name].shape for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)


@pytest.mark.parametrize("tokens", [5, 80], ids=["few-tokens", "many-tokens"])
@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
def test_every_rule(path: tuple[str, str], rule: dict[str, str], tokens: int) -> None:
    kernel, device = path
    assert_same(make_case((2, tokens), 70, 66, (16, 9), device=device, seed=1, **rule), kernel)


@pytest.mark.parametrize(
    "words", [{"transposed": True}, {"bias": False}, {"start": True}, {"ranks": (33, 8)}, {"leading": ()}], ids=str
)
def test_every_layout(path: tuple[str, str], words: dict[str, Any]) -> None:
    kernel, device = path
    assert_same(make_case(**{"leading": (40,), **words}, device=device, seed=2), kernel)


def test_input_and_gradient_of_any_strides(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((2, 40), device=device)
    case.x, case.grad = case.x.transpose(0, 1), case.grad.transpose(0, 1)
    assert_same(case, kernel)
    case.x = torch.randn(17, 40, device=device).t()
    case.grad = torch.ones((), device=device).expand(40, 13)
    assert_same(case, kernel)


def test_no_tokens(path: tuple[str, str]) -> None:
    kernel, device = path
    found = one_call(make_case((0, 4), device=device), kernel)
    assert found["y"].shape == (0, 4, 13)
    assert all(torch.count_nonzero(found[name]) == 0 for name in ("A", "B", "C", "D", "bias"))


@pytest.mark.parametrize("frozen", ["x", "factors"])
def test_only_gradients_that_are_needed(path: tuple[str, str], frozen: str) -> None:
    kernel, device = path
    case = make_case((40,), device=device)
    expected, leaves = one_call(case, kernel), leaves_of(case)
    for name in ("x",) if frozen == "x" else "ABCD":
        leaves[name].requires_grad_(False)
    torch.manual_seed(5)
    y = apply_update_with_dropout(leaves["x"], case.weight, leaves["bias"], update_of(case, leaves, kernel), P)
    y.backward(case.grad)
    for name, leaf in leaves.items():
        assert leaf.grad is None if not leaf.requires_grad else torch.equal(leaf.grad, expected[name]), name


@pytest.mark.triton
def test_a_kept_update_changes_no_digit(fused_device: str) -> None:
    case = make_case((40,), 70, 140, (16, 9), device=fused_device)
    kept, rebuilt = one_call(case, "fused", keeps=True), one_call(case, "fused")
    assert [name for name in rebuilt if not torch.equal(kept[name], rebuilt[name])] == []


def test_recomputed_activations_have_the_same_mask(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((2, 40), device=device)
    expected, leaves = one_call(case, kernel), leaves_of(case)
    update = update_of(case, leaves, kernel)
    torch.manual_seed(5)
    y = checkpoint(apply_update_with_dropout, leaves["x"], case.weight, leaves["bias"], update, P, use_reentrant=False)
    torch.rand(7, device=device)
    found = {"y": y.detach(), **gradients(y, leaves, case)}
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def saved_shapes(case: Case, kernel: str) -> list[tuple[tuple[int, ...], torch.dtype]]:
    leaves = leaves_of(case)
    own = {value.data_ptr() for value in (case.weight, *leaves.values())}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        apply_update_with_dropout(leaves["x"], case.weight, leaves["bias"], update_of(case, leaves, kernel), P)
    return [(tuple(t.shape), t.dtype) for t in saved if t.data_ptr() not in own]


def test_what_is_kept_is_the_dropped_input_and_its_mask(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((40,), device=device)
    assert saved_shapes(case, kernel) == [((40, 17), torch.float32), ((40, 17), torch.bool)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(path: tuple[str, str], dtype: torch.dtype) -> None:
    """Numbers of autocast's own dtype take the one call; others are cast after dropout, as by nn.Dropout."""
    kernel, device = path
    case = make_case((40,), dtype=dtype, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = one_call(case, kernel)
        shapes = saved_shapes(case, kernel)
    assert found["y"].dtype == torch.bfloat16
    assert found["A"].dtype == torch.float32
    assert found["x"].dtype == dtype
    if dtype == torch.bfloat16:
        assert shapes == [((40, 17), torch.bfloat16), ((40, 17), torch.bool)]
    truth = exact(case)
    assert max(relative_error(found[name], truth[name]) for name in NAMES) < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_errs_no_more_than_separate_products(path: tuple[str, str], dtype: torch.dtype) -> None:
    """Against float64 with the same mask; the separate products round their sum once more."""
    kernel, device = path
    case = make_case((80,), 96, 80, (16, 16), dtype=dtype, device=device, grad_std=0.05, seed=3)
    check_half_precision(case, kernel, 2.5 if path == ("fused", "cpu") else 1.0)


def check_half_precision(case: Case, kernel: str, slack: float) -> None:
    truth, expected, found = exact(case), formula(case), one_call(case, kernel)
    for name in NAMES:
        allowed = slack * (2.0 if name in "ABCD" else 1.1) * relative_error(expected[name], truth[name])
        assert relative_error(found[name], truth[name]) <= allowed, name


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [16, 1792], ids=["few-tokens", "many-tokens"])
def test_of_a_real_size_on_a_gpu(cuda: str, tokens: int) -> None:
    case = make_case((tokens,), 2048, 1024, (16, 16), dtype=torch.bfloat16, device=cuda, grad_std=0.05, factor_std=0.05)
    check_half_precision(case, "fused", 1.0)
    kept, rebuilt = one_call(case, "fused", keeps=True), one_call(case, "fused")
    assert [name for name in rebuilt if not torch.equal(kept[name], rebuilt[name])] == []


@pytest.mark.gpu
def test_a_recorded_call_draws_what_an_eager_one_draws(cuda: str) -> None:
    case = make_case((448,), 1024, 512, (16, 16), dtype=torch.bfloat16, device=cuda)
    leaves = leaves_of(case)
    update = update_of(case, leaves, "fused")

    def step() -> list[Tensor]:
        y = apply_update_with_dropout(leaves["x"], case.weight, leaves["bias"], update, P)
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), case.grad)]

    torch.manual_seed(7)
    expected = [step() for _ in range(3)]
    assert not torch.equal(expected[0][0], expected[1][0])
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.autograd.set_multithreading_enabled(False):
        step()
        with torch.cuda.graph(graph, stream=stream):
            found = step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.manual_seed(7)
    for step_of_eager in expected:
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, step_of_eager, strict=True))
