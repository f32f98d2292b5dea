"""One layer against the paper's formulas, written out here a second time in NumPy float64.

Factors are small multiples of 1/4, so that B A and D C are exact in float32 and hit zero: Sign(0) = -1 and the mask
1[M > 0] are then tested where they matter, and no sign depends on rounding.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from dual_lora import DualLoraConfig, DualLoraLinear, set_delta_warmup
from dual_lora.tuner import layer as layer_module

WARMUP = 0.25
KERNELS = ["auto", "generic", "reference"]  # on CPU: one GEMM in tiles, a separate update, plain autograd
SHAPES = [(5, 7, 1, 1), (1, 9, 3, 2), (33, 17, 5, 1), (12, 1, 2, 7)]  # out, in, r1, r2
RULES = [
    ("clipped_gradient", "relu", "sign"),
    ("identity", "relu", "sign"),
    ("hard_tanh", "relu", "sign"),
    ("clipped_gradient", "identity", "sign"),
    ("clipped_gradient", "relu", "identity"),
    ("clipped_gradient", "identity", "identity"),
]


@dataclass
class Oracle:
    """Forward and gradients of one layer for loss = sum(Y * grad_y), all in float64 (design: update rule)."""

    weight: np.ndarray
    bias: np.ndarray
    factors: tuple[np.ndarray, ...]
    scaling: float
    rule: tuple[str, str, str]
    start: tuple[np.ndarray, ...] | None = None

    def update(self, factors: tuple[np.ndarray, ...]) -> np.ndarray:
        u, v, _, _ = self._parts(factors)
        return self.scaling * u * v

    def _parts(self, factors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        a, b, c, d = factors
        m, p = b @ a, d @ c
        u = np.maximum(m, 0) if self.rule[1] == "relu" else m
        v = np.where(p > 0, 1.0, -1.0) if self.rule[2] == "sign" else p
        return u, v, m, p

    def effective_weight(self) -> np.ndarray:
        start = self.update(self.start) if self.start else 0.0
        return self.weight + self.update(self.factors) - start

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x @ self.effective_weight().T + self.bias

    def gradients(self, x: np.ndarray, grad_y: np.ndarray) -> dict[str, np.ndarray]:
        ste, magnitude, direction = self.rule
        a, b, c, d = self.factors
        u, v, m, p = self._parts(self.factors)
        g = grad_y.T @ x
        gm = self.scaling * g * v
        if magnitude == "relu":
            gm = gm * (m > 0)
        q = self.scaling * g * u
        if direction == "sign" and ste == "clipped_gradient":
            q = np.clip(q, -1, 1)
        elif direction == "sign" and ste == "hard_tanh":
            q = q * (np.abs(p) <= 1)
        return {
            "x": grad_y @ self.effective_weight(),
            "bias": grad_y.sum(0),
            "A": b.T @ gm,
            "B": gm @ a.T,
            "C": d.T @ q,
            "D": q @ c.T,
        }


def exact_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-4, 5, shape) / 4


def make_layer(
    oracle: Oracle, base_class: type, kernel: str, alpha: float, dropout: float = 0.0
) -> tuple[nn.Module, DualLoraLinear]:
    out_features, in_features = oracle.weight.shape
    base = nn.Linear(in_features, out_features) if base_class is nn.Linear else Conv1D(out_features, in_features)
    weight = oracle.weight if base_class is nn.Linear else oracle.weight.T
    with torch.no_grad():
        base.weight.copy_(torch.from_numpy(weight.copy()))
        base.bias.copy_(torch.from_numpy(oracle.bias))
    ste, magnitude, direction = oracle.rule
    config = DualLoraConfig(
        r_magnitude=oracle.factors[0].shape[0],
        r_direction=oracle.factors[2].shape[0],
        alpha=alpha,
        ste=ste,
        magnitude_activation=magnitude,
        direction_activation=direction,
        subtract_start=oracle.start is not None,
        dropout=dropout,
        target_modules=["layer"],
        kernel=kernel,
    )
    model = get_peft_model(nn.ModuleDict({"layer": base}), config)
    layer = model.base_model.model["layer"]
    layer.bias.requires_grad_(True)
    with torch.no_grad():
        for parameter, value in zip(layer.factors("default"), oracle.factors, strict=True):
            parameter.copy_(torch.from_numpy(value))
        for buffer, value in zip(layer.start_factors("default") or (), oracle.start or (), strict=True):
            buffer.copy_(torch.from_numpy(value))
    return model, layer


def make_case(
    shape: tuple[int, int, int, int], rule: tuple[str, str, str], alpha: float, start: bool = False, seed: int = 0
) -> Oracle:
    out_features, in_features, r1, r2 = shape
    rng = np.random.default_rng(seed)
    shapes = [(r1, in_features), (out_features, r1), (r2, in_features), (out_features, r2)]
    return Oracle(
        weight=rng.normal(size=(out_features, in_features)),
        bias=rng.normal(size=out_features),
        factors=tuple(exact_numbers(rng, *s) for s in shapes),
        scaling=WARMUP * alpha / np.sqrt(r1 * r2),
        rule=rule,
        start=tuple(exact_numbers(rng, *s) for s in shapes) if start else None,
    )


def check_against_oracle(oracle: Oracle, model: nn.Module, layer: DualLoraLinear, grad_scale: float) -> None:
    rng = np.random.default_rng(1)
    out_features, in_features = oracle.weight.shape
    x = rng.normal(size=(6, in_features))
    grad_y = grad_scale * rng.normal(size=(6, out_features))
    set_delta_warmup(model, WARMUP)
    x_tensor = torch.tensor(x.reshape(2, 3, in_features), dtype=torch.float32, requires_grad=True)
    y = layer(x_tensor)
    y.backward(torch.tensor(grad_y.reshape(2, 3, out_features), dtype=torch.float32))

    expected = oracle.gradients(x, grad_y)
    names = ["x", "bias", "A", "B", "C", "D"]
    tensors = [x_tensor, layer.bias, *layer.factors("default")]
    actual = {name: tensor.grad.double().numpy() for name, tensor in zip(names, tensors, strict=True)}
    actual["x"] = actual["x"].reshape(6, in_features)
    expected["y"], actual["y"] = oracle.forward(x), y.detach().double().numpy().reshape(6, out_features)
    for name in expected:
        # float32 against float64: relative to the largest entry, a few roundings of sums of up to 33 terms.
        bound = 3e-6 * max(1.0, np.abs(expected[name]).max())
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("base_class", [nn.Linear, Conv1D])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids="-".join)
def test_forward_and_all_gradients_follow_the_formulas(kernel, base_class, shape, rule):
    oracle = make_case(shape, rule, alpha=2.0)
    model, layer = make_layer(oracle, base_class, kernel, alpha=2.0)
    check_against_oracle(oracle, model, layer, grad_scale=1.0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rule", RULES[:3], ids="-".join)
def test_the_straight_through_rules_differ_where_they_act(kernel, rule):
    """Incoming gradients far above 1, and products P on both sides of 1, so that clip and mask both act."""
    oracle = make_case((33, 17, 5, 3), rule, alpha=8.0)
    *_, p = oracle._parts(oracle.factors)
    rng = np.random.default_rng(1)
    x, grad_y = rng.normal(size=(6, 17)), 10 * rng.normal(size=(6, 33))
    others = [Oracle(**{**vars(oracle), "rule": other}) for other in RULES[:3] if other != rule]
    for other in others:
        difference = np.abs(oracle.gradients(x, grad_y)["C"] - other.gradients(x, grad_y)["C"]).max()
        assert difference > 1, "this case cannot tell the rules apart"
    assert (np.abs(p) > 1).any()
    assert (np.abs(p) <= 1).any()
    model, layer = make_layer(oracle, nn.Linear, kernel, alpha=8.0)
    check_against_oracle(oracle, model, layer, grad_scale=10.0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("base_class", [nn.Linear, Conv1D])
def test_subtract_start_subtracts_the_frozen_update(kernel, base_class):
    oracle = make_case((12, 9, 3, 2), RULES[0], alpha=4.0, start=True)
    model, layer = make_layer(oracle, base_class, kernel, alpha=4.0)
    check_against_oracle(oracle, model, layer, grad_scale=1.0)


def test_the_cases_contain_exact_zeros_of_both_products():
    """Otherwise Sign(0) = -1 and the mask 1[M > 0] at 0 would go untested."""
    _, _, m, p = make_case(SHAPES[2], RULES[0], alpha=2.0)._parts(make_case(SHAPES[2], RULES[0], 2.0).factors)
    assert (m == 0).sum() >= 5
    assert (p == 0).sum() >= 5


@pytest.mark.parametrize("base_class", [nn.Linear, Conv1D])
def test_get_delta_weight_is_the_update_in_the_orientation_of_the_base_weight(base_class):
    oracle = make_case((33, 17, 5, 3), RULES[0], alpha=2.0)
    model, layer = make_layer(oracle, base_class, "auto", alpha=2.0)
    set_delta_warmup(model, WARMUP)
    delta = layer.get_delta_weight("default")
    expected = oracle.update(oracle.factors)
    assert delta.dtype == torch.float32
    assert delta.shape == layer.weight.shape
    np.testing.assert_allclose(delta.numpy(), expected if base_class is nn.Linear else expected.T, rtol=1e-6)


def test_dropout_acts_on_the_input_of_the_update_only_and_only_in_training():
    oracle = make_case((8, 64, 3, 2), RULES[0], alpha=4.0)
    model, layer = make_layer(oracle, nn.Linear, "auto", alpha=4.0, dropout=0.5)
    x = torch.randn(5, 64)
    base = nn.functional.linear(x, layer.weight, layer.bias)
    delta = layer.get_delta_weight("default")
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(model.train().base_model.model["layer"](x), base + dropped @ delta.T)
    torch.testing.assert_close(model.eval().base_model.model["layer"](x), base + x @ delta.T)


@pytest.mark.parametrize("base_class", [nn.Linear, Conv1D])
def test_with_dropout_one_call_computes_what_two_calls_do(base_class, monkeypatch):
    """A base layer with a hook has to be called itself; without one, one call reads its weight."""
    oracle = make_case((8, 64, 3, 2), RULES[0], alpha=4.0)
    model, layer = make_layer(oracle, base_class, "auto", alpha=4.0, dropout=0.5)
    model.train()
    calls = []
    original = layer_module.apply_update_with_dropout
    monkeypatch.setattr(layer_module, "apply_update_with_dropout", lambda *words: calls.append(1) or original(*words))
    results = []
    for _ in range(2):
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        torch.manual_seed(3)
        y = layer(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(factor.grad.clone() for factor in layer.factors("default"))])
        model.zero_grad()
        layer.base_layer.register_forward_hook(lambda *arguments: None)
        assert len(calls) == 1
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)
    model.eval()
    layer(x)
    assert len(calls) == 1


def large_tensors(elements: int) -> set[int]:
    """Return the storages of all tensors in the process with at least this many elements."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel() >= elements}


@pytest.mark.parametrize("base_class", [nn.Linear, Conv1D])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["one GEMM", "separate update"])
def test_nothing_of_the_size_of_the_weight_is_held_after_forward(base_class, dtype, case):
    out_features, in_features, tokens = 131, 137, 3
    base = nn.Linear(in_features, out_features) if base_class is nn.Linear else Conv1D(out_features, in_features)
    config = DualLoraConfig(target_modules=["layer"], dropout=0.1 if case == "separate update" else 0.0)
    model = get_peft_model(nn.ModuleDict({"layer": base}).to(dtype), config).train()
    layer = model.base_model.model["layer"]
    x = torch.randn(tokens, in_features, dtype=dtype, requires_grad=True)
    sizes: list[int] = []
    before = large_tensors(out_features * in_features)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() != layer.weight.untyped_storage().data_ptr():
            sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    held = large_tensors(out_features * in_features) - before
    assert sizes, "the hook saw nothing"
    assert max(sizes) < out_features * in_features
    assert not held
    y.sum().backward()
    assert all(factor.grad is not None for factor in layer.factors("default"))


@pytest.mark.parametrize("base_class", [nn.Linear, Conv1D])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_base_weight_that_is_trained_as_well_gets_its_gradient(base_class, dropout, kernel):
    base = nn.Linear(7, 5) if base_class is nn.Linear else Conv1D(5, 7)
    config = DualLoraConfig(target_modules=["layer"], r_magnitude=2, r_direction=2, dropout=dropout, kernel=kernel)
    layer = get_peft_model(nn.ModuleDict({"layer": base}), config).base_model.model["layer"].train()
    x, grad = torch.randn(3, 7), torch.randn(3, 5)
    layer.base_layer.weight.requires_grad_(True)
    layer(x).backward(grad)
    expected = grad.t() @ x
    torch.testing.assert_close(layer.base_layer.weight.grad, expected if base_class is nn.Linear else expected.t())
    assert all(factor.grad is not None for factor in layer.factors("default"))
