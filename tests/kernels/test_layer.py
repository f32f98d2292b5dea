"""What every path promises for one layer: the reference's numbers, whatever the shape, dtype, layout and options."""

from __future__ import annotations

import pytest
import torch

from dual_lora.kernels import (
    Update,
    apply_update,
    delta_weight,
    dual_lora_delta_linear,
    dual_lora_linear,
    reference,
    update_spec,
)
from tests.kernels.cases import RULE_IDS, RULES, Case, make_case, relative_error


def assert_same(case: Case, kernel: str, tolerance: float = 2e-6, **changes: bool) -> None:
    expected, actual = case.run("reference", **changes), case.run(kernel, **changes)
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) < tolerance, errors
    assert all(actual[name].dtype == expected[name].dtype for name in expected)
    assert all(actual[name].shape == expected[name].shape for name in expected)


@pytest.mark.parametrize("start", [False, True], ids=["", "subtract-start"])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
def test_every_rule_and_layout(path: tuple[str, str], rule: dict[str, str], transposed: bool, start: bool) -> None:
    kernel, device = path
    assert_same(make_case(device=device, transposed=transposed, start=start, seed=1, **rule), kernel)


@pytest.mark.parametrize(
    ("in_features", "out_features", "ranks", "tokens"),
    [(1, 1, (1, 1), 1), (3, 130, (2, 7), 3), (129, 5, (16, 17), 70), (70, 200, (33, 8), 66), (160, 96, (40, 70), 5)],
)
def test_odd_shapes_and_ranks(
    path: tuple[str, str], in_features: int, out_features: int, ranks: tuple[int, int], tokens: int
) -> None:
    kernel, device = path
    case = make_case((tokens,), in_features, out_features, ranks, device=device, seed=2)
    assert_same(case, kernel)
    assert_same(case, kernel, delta_only=True)


def test_without_bias(path: tuple[str, str]) -> None:
    kernel, device = path
    assert_same(make_case((3,), bias=False, device=device), kernel)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3, 5)], ids=str)
def test_any_leading_dimensions(path: tuple[str, str], leading: tuple[int, ...]) -> None:
    kernel, device = path
    assert_same(make_case(leading, device=device), kernel)


@pytest.mark.parametrize("tokens", [5, 80], ids=["few-tokens", "many-tokens"])
def test_non_contiguous_input_and_gradient(path: tuple[str, str], tokens: int) -> None:
    kernel, device = path
    case = make_case((2, tokens), device=device)
    case.x = case.x.transpose(0, 1)
    case.grad = case.grad.transpose(0, 1)
    assert not case.x.is_contiguous()
    assert_same(case, kernel)
    case.x = torch.randn(17, tokens, device=device).t()
    case.grad = torch.ones((), device=device).expand(tokens, 13)
    assert_same(case, kernel)


def test_empty_batch_gives_empty_output_and_zero_gradients(path: tuple[str, str]) -> None:
    kernel, device = path
    result = make_case((0, 4), device=device).run(kernel)
    assert result["y"].shape == (0, 4, 13)
    assert all(torch.count_nonzero(result[f"grad_{name}"]) == 0 for name in ("A", "B", "C", "D", "bias"))


def test_warm_up_of_zero_is_the_base_layer_and_stops_the_factors(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((70,), device=device, scaling=0.0)
    result = case.run(kernel)
    torch.testing.assert_close(result["y"], case.x @ case.weight.t() + case.bias)
    assert all(torch.count_nonzero(result[f"grad_{name}"]) == 0 for name in "ABCD")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("tokens", [9, 80], ids=["few-tokens", "many-tokens"])
def test_half_precision_errs_hardly_more_than_the_reference(
    path: tuple[str, str], dtype: torch.dtype, tokens: int
) -> None:
    """Both are compared with float64 on the same (rounded) numbers. Factor gradients may err twice as much."""
    kernel, device = path
    case = make_case((tokens,), 96, 80, (16, 16), dtype=dtype, device=device, grad_std=0.05, seed=3)
    truth = case.to(torch.float64, torch.float64).run("reference")
    expected, actual = case.run("reference"), case.run(kernel)
    for name, value in actual.items():
        # Triton's interpreter cuts float32 to bf16 where the hardware rounds, which doubles the error.
        factor = (2.0 if name[-1] in "ABCD" else 1.25) * (2.5 if path == ("fused", "cpu") else 1.0)
        allowed = factor * relative_error(expected[name], truth[name])
        assert relative_error(value, truth[name]) <= allowed, name


def test_merged_weight_is_the_weight_of_the_forward_pass(path: tuple[str, str]) -> None:
    """The identity as input shows the effective weight; it must be W0 + `delta_weight`, bit for bit."""
    kernel, device = path
    case = make_case(in_features=72, out_features=70, ranks=(16, 16), device=device, bias=False)
    factors, eye = case.factors, torch.eye(72, device=device)
    seen = dual_lora_linear(eye, torch.zeros_like(case.weight), None, *factors, 0.7, kernel=kernel).t()
    assert torch.equal(seen, delta_weight(*factors, 0.7, kernel=kernel))


def test_delta_weight_signs_are_exact_outside_a_tiny_band(path: tuple[str, str]) -> None:
    """Signs may differ from float64's only where |P| <= 16 eps (|D| |C|); that is less than 1e-4 of the entries."""
    kernel, device = path
    A, B, C, D = make_case(in_features=200, out_features=180, ranks=(4, 16), device=device, factor_std=0.02).factors
    delta = delta_weight(A, B, C, D, 1.0, magnitude_activation="identity", kernel=kernel)
    sign = torch.where((delta > 0) == ((B @ A) > 0), 1.0, -1.0)
    p, bound = D.double() @ C.double(), 16 * 2.0**-24 * (D.double().abs() @ C.double().abs())
    inside = p.abs() <= bound
    assert inside.double().mean() < 1e-4
    assert torch.equal(sign[~inside].double(), torch.where(p > 0, 1.0, -1.0)[~inside].double())


def test_gradients_are_bitwise_reproducible(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((70,), 70, 66, (16, 16), device=device)
    first, second = case.run(kernel), case.run(kernel)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tokens", [5, 70], ids=["few-tokens", "many-tokens"])
def test_base_output_is_added_and_receives_its_gradient(path: tuple[str, str], tokens: int) -> None:
    kernel, device = path
    case = make_case((tokens,), device=device)
    base = torch.randn(tokens, 13, device=device, requires_grad=True)
    before = base.detach().clone()
    y = dual_lora_delta_linear(case.x, *case.factors, 0.7, base=base, kernel=kernel)
    alone = dual_lora_delta_linear(case.x, *case.factors, 0.7, kernel=kernel)
    torch.testing.assert_close(y, base + alone)
    assert torch.equal(base, before)
    assert torch.equal(torch.autograd.grad(y, base, case.grad)[0], case.grad)


def test_base_output_in_a_wider_dtype_keeps_its_precision(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((70,), dtype=torch.bfloat16, device=device)
    base = torch.randn(70, 13, device=device)
    y = dual_lora_delta_linear(case.x, *case.factors, 0.7, base=base, kernel=kernel)
    assert torch.equal(y, base + dual_lora_delta_linear(case.x, *case.factors, 0.7, kernel=kernel).float())


def test_nothing_of_the_weights_size_is_saved_for_backward(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((4,), 64, 48, (4, 4), device=device)
    factors = tuple(f.requires_grad_() for f in case.factors)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dual_lora_linear(case.x, case.weight, case.bias, *factors, 0.7, kernel=kernel)
    own = {t.data_ptr() for t in (case.x, case.weight, *factors)}
    assert {t.data_ptr() for t in saved} <= own


def test_low_precision_factors_get_gradients_in_their_dtype(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((70,), dtype=torch.bfloat16, factor_dtype=torch.bfloat16, device=device)
    assert_same(case, kernel, tolerance=2e-2)


def test_autocast_runs_in_its_dtype_and_forms_signs_in_float32(path: tuple[str, str]) -> None:
    kernel, device = path
    case = make_case((70,), 40, 30, (4, 4), device=device)
    factors = tuple(f.detach().requires_grad_() for f in case.factors)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = dual_lora_linear(case.x, case.weight, case.bias, *factors, 0.7, kernel=kernel)
        y.float().square().sum().backward()
        merged = delta_weight(*factors, 0.7, kernel=kernel)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(merged, reference.delta_weight(*case.factors, 0.7), atol=1e-6, rtol=1e-5)
    expected = (case.x @ (case.weight + merged).t() + case.bias).detach()
    assert relative_error(y.detach(), expected) < 1e-2
    assert all(f.grad is not None and f.grad.dtype == torch.float32 for f in factors)


def test_wrong_shapes_are_named() -> None:
    case = make_case()
    A, B, C, D = case.factors
    with pytest.raises(ValueError, match="factor shapes do not fit"):
        dual_lora_linear(case.x, case.weight, None, A, D, C, B, 1.0)
    with pytest.raises(ValueError, match="weight has shape"):
        dual_lora_linear(case.x, case.weight.t(), None, A, B, C, D, 1.0)
    with pytest.raises(ValueError, match="input features"):
        dual_lora_linear(case.x[..., 1:], case.weight, None, A, B, C, D, 1.0)


@pytest.mark.parametrize("ranks", [(3, 5), (40, 33)], ids=["one-reduction", "by-gemm"])
def test_the_clip_moves_with_the_loss_scale(path: tuple[str, str], ranks: tuple[int, int]) -> None:
    """With a loss that is multiplied by L, gradients are L times those of the loss, where the clip acts as well."""
    kernel, device = path
    case = make_case(device=device, ranks=ranks)
    gradients = []
    for scale in (1.0, 1024.0):
        factors = tuple(factor.clone().requires_grad_() for factor in case.factors)
        update = Update(factors, None, case.scaling, update_spec(kernel=kernel), loss_scale=scale)
        y = apply_update(case.x, case.weight, None, update)
        gradients.append(torch.autograd.grad(y, factors, scale * case.grad))
    clipped = case.run("reference")["grad_C"]
    case.options["ste"] = "identity"
    assert relative_error(case.run("reference")["grad_C"], clipped) > 0.05, "the clip must act"
    for plain, scaled in zip(*gradients, strict=True):
        assert relative_error(scaled / 1024.0, plain) < 1e-6  # a power of two: the same digits
