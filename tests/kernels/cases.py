"""Random layers for the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dual_lora.kernels import dual_lora_delta_linear, dual_lora_linear

RULES: list[dict[str, str]] = [
    {},
    {"ste": "identity"},
    {"ste": "hard_tanh"},
    {"magnitude_activation": "identity"},
    {"direction_activation": "identity"},
    {"magnitude_activation": "identity", "direction_activation": "identity"},
]
RULE_IDS = ["paper", "identity-ste", "hard-tanh", "no-relu", "no-sign", "neither"]


@dataclass
class Case:
    """One layer with its input and the gradient that arrives at its output."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    factors: tuple[Tensor, ...]
    grad: Tensor
    scaling: float
    options: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype, factor_dtype: torch.dtype) -> Case:
        """The same numbers in other dtypes: activations and weight in `dtype`, factors in `factor_dtype`."""
        options = dict(self.options)
        if options.get("start") is not None:
            options["start"] = tuple(f.to(factor_dtype) for f in options["start"])
        return Case(
            self.x.to(dtype),
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            tuple(f.to(factor_dtype) for f in self.factors),
            self.grad.to(dtype),
            self.scaling,
            options,
        )

    def run(self, kernel: str, **changes: Any) -> dict[str, Tensor]:
        """Output and every gradient of `dual_lora_linear` (`delta_only=True`: of `dual_lora_delta_linear`)."""
        leaves = {"x": self.x, "A": self.factors[0], "B": self.factors[1], "C": self.factors[2], "D": self.factors[3]}
        delta_only = changes.pop("delta_only", False)
        if self.bias is not None and not delta_only:
            leaves["bias"] = self.bias
        leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
        factors = (leaves["A"], leaves["B"], leaves["C"], leaves["D"])
        options = {**self.options, **changes}
        if delta_only:
            options.pop("transposed", None)
            y = dual_lora_delta_linear(leaves["x"], *factors, self.scaling, kernel=kernel, **options)
        else:
            bias = leaves.get("bias")
            y = dual_lora_linear(leaves["x"], self.weight, bias, *factors, self.scaling, kernel=kernel, **options)
        grads = torch.autograd.grad(y, list(leaves.values()), self.grad.to(y.dtype))
        return {"y": y.detach(), **{f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}}


def make_case(
    leading: tuple[int, ...] = (2, 7),
    in_features: int = 17,
    out_features: int = 13,
    ranks: tuple[int, int] = (3, 5),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    factor_dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    factor_std: float = 0.3,
    grad_std: float = 1.0,
    bias: bool = True,
    transposed: bool = False,
    start: bool = False,
    scaling: float = 0.7,
    **rule: str,
) -> Case:
    """Fresh normal numbers; the weight's spread is 1 / sqrt(in), so that outputs are of order one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * std

    def factors() -> tuple[Tensor, ...]:
        shapes = ((ranks[0], in_features), (out_features, ranks[0]), (ranks[1], in_features), (out_features, ranks[1]))
        return tuple(normal(*shape, std=factor_std).to(device, factor_dtype) for shape in shapes)

    weight = normal(out_features, in_features, std=in_features**-0.5)
    options: dict[str, Any] = {**rule, "transposed": transposed}
    case = Case(
        normal(*leading, in_features).to(device, dtype),
        (weight.t().contiguous() if transposed else weight).to(device, dtype),
        normal(out_features).to(device, dtype) if bias else None,
        factors(),
        normal(*leading, out_features, std=grad_std).to(device, dtype),
        scaling,
        options,
    )
    if start:
        case.options["start"] = factors()
    return case


def relative_error(value: Tensor, truth: Tensor) -> float:
    """||value - truth|| / ||truth|| in float64; infinite for NaN."""
    value, truth = value.double().cpu(), truth.double().cpu()
    if not torch.isfinite(value).all():
        return float("inf")
    norm = truth.norm()
    return float((value - truth).norm() / norm) if norm > 0 else float((value - truth).norm())
