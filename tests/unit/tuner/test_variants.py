"""Variants of Dual LoRA's rule, each against its formulas in float64 NumPy: layer output, gradients, merging, files."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from dual_lora import DeltaWarmupCallback, DualLoraConfig
from dual_lora.tuner.factor import FACTORS, ROW_SCALE
from dual_lora.tuner.layer import DualLoraLinear

RANKS: dict[str, Any] = {"r_magnitude": 2, "r_direction": 3, "alpha": 6, "init_std": 0.5}
S = 6 / 6**0.5
C = 0.3  # `normalised`
VARIANTS: dict[str, dict[str, Any]] = {
    "zero start": {"zero_start": True},
    "zero start, no ReLU": {"zero_start": True, "magnitude_activation": "identity"},
    "annealed": {"direction_activation": "annealed_sign"},
    "normalised": {"normalised": C},
}
T = 0.4  # the temperature of an annealed Sign in these tests


def layer(**options: Any) -> DualLoraLinear:
    torch.manual_seed(0)
    base = nn.Linear(7, 5, dtype=torch.float64)
    made = DualLoraLinear(base, "default", DualLoraConfig(**RANKS, **options)).double()
    made.requires_grad_(False).set_adapter("default")
    return made


def randomised(made: DualLoraLinear) -> DualLoraLinear:
    """Give every trained tensor, also those that start at 0, other numbers."""
    with torch.no_grad():
        for tensor in made.adapter_tensors():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())))
    return made


def run(made: DualLoraLinear) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Return the output of a fixed input, the gradient of each tensor, and G of ΔW (out, in)."""
    generator = torch.Generator().manual_seed(1)
    x, upstream = (torch.randn(4, size, dtype=torch.float64, generator=generator) for size in (7, 5))
    y = made(x)
    y.backward(upstream)
    names = {"A": FACTORS[0], "B": FACTORS[1], "C": FACTORS[2], "D": FACTORS[3], "g": ROW_SCALE}
    held = {short: getattr(made, name)["default"].weight for short, name in names.items() if len(getattr(made, name))}
    return y.detach().numpy(), {name: tensor.grad.numpy() for name, tensor in held.items()}, (upstream.T @ x).numpy()


def by_hand(made: DualLoraLinear, G: np.ndarray, temperature: float | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return ΔW and the gradients of A, B, C, D (and g) by the formulas of docs/methods."""
    A, B, C_, D = (getattr(made, name)["default"].weight.detach().numpy() for name in FACTORS)
    spec = made.spec["default"]
    M, P = B @ A, D @ C_
    open_ = np.ones_like(M) if spec.magnitude_activation == "identity" else (M > 0).astype(float)
    if spec.magnitude_activation == "closed_relu":
        open_ = (M >= 0).astype(float)
    U, V = M * open_, np.where(P > 0, 1.0, -1.0)
    if temperature is not None:
        width = temperature * np.sqrt((P**2).mean())
        V = np.tanh(P / width)
    delta, to_product = S * U * V, S * G
    gradients = {}
    if spec.normalised:
        g = getattr(made, ROW_SCALE)["default"].weight.detach().numpy()
        rms = np.sqrt(((U * V) ** 2).mean(axis=1, keepdims=True))
        unit = U * V / rms
        delta = S * C * g * unit
        gradients["g"] = S * C * (G * unit).sum(axis=1, keepdims=True)
        to_product = S * C * g / rms * (G - unit * (G * unit).mean(axis=1, keepdims=True))
    Gm, Q = to_product * V * open_, to_product * U
    Gp = np.clip(Q, -1, 1) if temperature is None else Q * (1 - V**2) / width
    gradients |= {"A": B.T @ Gm, "B": Gm @ A.T, "C": D.T @ Gp, "D": Gp @ C_.T}
    return delta, gradients


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "later"])
@pytest.mark.parametrize("name", VARIANTS)
def test_output_and_gradients_are_those_of_the_formulas(name: str, fresh: bool) -> None:
    made = layer(**VARIANTS[name]) if fresh else randomised(layer(**VARIANTS[name]))
    temperature = T if name == "annealed" else None
    made.temperature = None if temperature is None else torch.tensor(T)
    y, gradients, G = run(made)
    delta, expected = by_hand(made, G, None if temperature is None else float(torch.tensor(T)))
    assert max(np.abs(value).max() for value in expected.values()) < 1e3
    x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).numpy()
    weight, bias = made.base_layer.weight.detach().numpy(), made.base_layer.bias.detach().numpy()
    np.testing.assert_allclose(y, x @ (weight + delta).T + bias, rtol=1e-12)
    assert gradients.keys() == expected.keys()
    for tensor, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[tensor], rtol=1e-9, atol=1e-12, err_msg=tensor)
    if fresh and name != "annealed":
        assert not delta.any(), "it starts at the base"
        assert any(gradient.any() for gradient in gradients.values()), "and moves from there"


def test_an_annealed_sign_ends_as_sign_and_is_sign_where_nothing_sets_its_temperature() -> None:
    made = layer(direction_activation="annealed_sign")
    plain = layer()
    x = torch.ones(2, 7, dtype=torch.float64)
    assert torch.equal(made(x), plain(x))
    made.temperature = torch.tensor(1e-9)
    assert torch.equal(made(x), plain(x))
    made.temperature = torch.tensor(T)
    assert not torch.allclose(made(x), plain(x))
    assert torch.equal(made.get_delta_weight("default"), plain.get_delta_weight("default")), "merging is at Sign"


def test_the_callback_anneals_by_one_number_that_stays_where_it_is() -> None:
    model = nn.Sequential(nn.Linear(7, 5))
    config = DualLoraConfig(**RANKS, target_modules=["0"], direction_activation="annealed_sign")
    adapted = get_peft_model(model, config)
    [made] = adapted.base_model.dual_lora_layers()
    callback, arguments = DeltaWarmupCallback(2), SimpleNamespace(fp16=False)
    state = SimpleNamespace(global_step=0, max_steps=4)
    callback.on_train_begin(arguments, state, None, model=adapted)  # type: ignore[arg-type]
    seen, places = [], set()
    for step in range(4):
        state.global_step = step
        callback.on_step_begin(arguments, state, None)  # type: ignore[arg-type]
        assert made.temperature is not None
        seen.append((made.delta_warmup, float(made.temperature)))
        places.add(made.temperature.data_ptr())
        state.global_step = step + 1
        callback.on_step_end(arguments, state, None)  # type: ignore[arg-type]
        assert made.temperature is None, "validation and saving see Sign"
    assert seen == [(0.0, 1.0), (0.5, 0.75), (1.0, 0.5), (1.0, 0.25)]
    assert len(places) == 1, "a recorded step reads it there"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_adapter_and_a_merged_model_compute_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(7, 5))
    config = DualLoraConfig(**RANKS, target_modules=["0"], **VARIANTS[name])
    adapted = get_peft_model(copy.deepcopy(base), config)
    randomised(adapted.base_model.dual_lora_layers()[0])
    trained = {key for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == (5 if name == "normalised" else 4)
    x = torch.randn(3, 7)
    expected = adapted(x)
    assert not torch.allclose(expected, base(x))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(loaded(x), expected)
    layer_ = loaded.base_model.dual_lora_layers()[0]
    weight = layer_.base_layer.weight + layer_.get_delta_weight("default")
    assert torch.allclose(x @ weight.T + base[0].bias, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(loaded.merge_and_unload()(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_start": True, "subtract_start": True}, "zero_start and subtract_start: each alone"),
        ({"zero_start": True, "normalised": 0.1}, "zero_start and normalised: each alone"),
        ({"zero_start": True, "init_std": "relative:0.01"}, "which zero_start makes 0"),
        ({"normalised": 0.1, "init_std": "relative:0.01"}, "which normalised makes 0"),
        ({"normalised": -0.1}, "at least 0"),
        ({"normalised": True}, "must be a number"),
        ({"direction_activation": "annealed_sign", "ste": "identity"}, "has a true gradient"),
        ({"zero_start": True, "kernel": "fused"}, "kernel='fused' does not compute closed_relu"),
        ({"direction_activation": "annealed_sign", "kernel": "generic"}, "does not compute annealed_sign"),
        ({"normalised": 0.1, "kernel": "fused"}, "does not compute normalised=0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualLoraConfig(**options)
