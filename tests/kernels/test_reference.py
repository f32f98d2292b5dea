"""The definition itself: values written out by hand, gradients against finite differences."""

from __future__ import annotations

import pytest
import torch

from dual_lora.kernels import reference
from tests.kernels.cases import RULE_IDS, RULES, make_case


def test_sign_of_zero_is_minus_one() -> None:
    A, B = torch.ones(1, 2), torch.ones(2, 1)
    C, D = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [-1.0]])
    expected = torch.tensor([[0.5, -0.5], [-0.5, -0.5]])
    assert torch.equal(reference.delta_weight(A, B, C, D, 0.5), expected)


def test_relu_removes_negative_magnitudes() -> None:
    A, B = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0]])
    C, D = torch.ones(1, 2), torch.ones(1, 1)
    assert torch.equal(reference.delta_weight(A, B, C, D, 1.0), torch.tensor([[2.0, 0.0]]))


def test_warm_up_of_zero_stops_every_factor_gradient() -> None:
    case = make_case(scaling=0.0)
    grads = case.run("reference")
    assert all(torch.count_nonzero(grads[f"grad_{name}"]) == 0 for name in "ABCD")
    torch.testing.assert_close(grads["y"], case.x @ case.weight.t() + case.bias)


@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
def test_magnitude_gradient_matches_finite_differences(rule: dict[str, str]) -> None:
    case = make_case(dtype=torch.float64, factor_dtype=torch.float64, **rule)
    A, B, C, D = (f.requires_grad_(i < 2) for i, f in enumerate(case.factors))
    assert torch.autograd.gradcheck(
        lambda A, B: reference.dual_lora_linear(case.x, case.weight, case.bias, A, B, C, D, 0.7, **case.options), (A, B)
    )


def test_unactivated_direction_gradient_matches_finite_differences() -> None:
    case = make_case(dtype=torch.float64, factor_dtype=torch.float64, direction_activation="identity")
    factors = tuple(f.requires_grad_() for f in case.factors)
    assert torch.autograd.gradcheck(
        lambda *f: reference.dual_lora_linear(case.x, case.weight, case.bias, *f, 0.7, **case.options), factors
    )


@pytest.mark.parametrize("ste", ["clipped_gradient", "identity", "hard_tanh"])
def test_direction_gradient_is_that_of_the_estimator(ste: str) -> None:
    """The estimator is the gradient of <Gp, DC> with Gp held fixed, and Gp is written out here."""
    case = make_case(dtype=torch.float64, factor_dtype=torch.float64, factor_std=0.9, grad_std=0.3, ste=ste)
    A, B, C, D = (f.detach() for f in case.factors)
    G = case.grad.reshape(-1, 13).t() @ case.x.reshape(-1, 17)
    q = 0.7 * G * torch.relu(B @ A)
    assert (q.abs() > 1).any(), "the clip must act in this test"
    assert ((D @ C).abs() > 1).any(), "the window of hard_tanh must act in this test"
    gp = {"clipped_gradient": q.clamp(-1, 1), "identity": q, "hard_tanh": q * ((D @ C).abs() <= 1)}[ste]
    grads = case.run("reference")
    torch.testing.assert_close(grads["grad_D"], gp @ C.t())
    torch.testing.assert_close(grads["grad_C"], D.t() @ gp)


def test_subtracting_the_start_begins_at_the_base_layer() -> None:
    case = make_case(start=True)
    factors = case.options["start"]
    delta = reference.delta_weight(*factors, 0.7, start=factors)
    assert torch.count_nonzero(delta) == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("ste", "dorefa"), ("magnitude_activation", "gelu"), ("direction_activation", "tanh")],
)
def test_unknown_option_names_the_legal_ones(option: str, value: str) -> None:
    case = make_case()
    with pytest.raises(ValueError, match=f"{option}='{value}' is not known; use one of"):
        reference.delta_weight(*case.factors, 1.0, **{option: value})


def test_estimator_without_sign_is_refused() -> None:
    with pytest.raises(ValueError, match="direction_activation='identity'"):
        make_case(ste="identity", direction_activation="identity").run("generic")
