"""What happens inside Dual LoRA's two products: M = B A, P = D C, their activations and the straight-through clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dual_lora.kernels import delta_weight, form_update
from dual_lora.kernels.spec import Factors
from dual_lora.tuner import DualLoraLinear

ADAPTER = "default"


@torch.no_grad()
def products(layer: DualLoraLinear) -> tuple[Tensor, Tensor]:
    """Return M = B A and P = D C, float32 (out, in)."""
    a, b, c, d = (factor.float() for factor in layer.factors(ADAPTER))
    return b @ a, d @ c


@torch.no_grad()
def product_measures(layer: DualLoraLinear) -> dict[str, float]:
    """Return the share of zeros in ReLU(M), the share of +1 among the signs of P, and max |P|."""
    magnitude, direction = products(layer)
    return {
        "zero_share": float((magnitude <= 0).float().mean()),
        "positive_share": float((direction > 0).float().mean()),
        "max_abs_p": float(direction.abs().max()),
    }


@torch.no_grad()
def signs(layer: DualLoraLinear) -> Tensor:
    """Return Sign(P) > 0 as one bit per entry, on the host (uint8, ⌈out·in/8⌉): a 7B model's fit in half a GiB."""
    flat = (products(layer)[1] > 0).flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    bits = 2 ** torch.arange(8, device=flat.device, dtype=torch.uint8)
    return (padded * bits).sum(dim=1, dtype=torch.uint8).cpu()


def flipped_share(before: Tensor, after: Tensor, entries: int) -> float:
    """Return the share of `entries` signs that differ between two results of `signs`."""
    different = torch.bitwise_xor(before, after)
    count = sum(int(((different >> bit) & 1).sum()) for bit in range(8))
    return count / entries


@torch.no_grad()
def untrained_update(layer: DualLoraLinear, generator: torch.Generator) -> Tensor:
    """Return the update of fresh Gaussian factors of the layer's ranks, σ, activations and scale: the rank control.

    `subtract_start` is left out, since that update is 0 before training.
    """
    spec, sigma = layer.spec[ADAPTER], layer.init_std[ADAPTER] or 1.0
    factors = [
        sigma * torch.randn(factor.shape, generator=generator).to(factor.device) for factor in layer.factors(ADAPTER)
    ]
    return delta_weight(
        factors[0],
        factors[1],
        factors[2],
        factors[3],
        layer.scaling[ADAPTER],
        magnitude_activation=spec.magnitude_activation,
        direction_activation=spec.direction_activation,
    )


def copied_factors(layer: DualLoraLinear) -> Factors:
    """Return (A, B, C, D) as they are now."""
    a, b, c, d = (factor.detach().clone() for factor in layer.factors(ADAPTER))
    return a, b, c, d


@torch.no_grad()
def step_parts(before: Factors, layer: DualLoraLinear) -> tuple[Tensor, Tensor]:
    """Split the change of ΔW (at w = 1) since `before` into what the magnitudes did and what the directions did.

    With U V of before and U' V' of now: s₀ (U' - U) ⊙ (V + V')/2 and s₀ (U + U')/2 ⊙ (V' - V), whose sum is the change.
    Under Sign each entry is in one of them alone: in the second where its sign flipped. A normalised update has both at
    the row scale of now.

    Returns: the two parts, float32 (out, in).
    """
    (a, b, c, d), (a1, b1, c1, d1) = before, layer.factors(ADAPTER)
    now = layer.update(ADAPTER)._replace(scaling=layer.scaling[ADAPTER])
    old, new = form_update(now._replace(factors=(a, b, c, d))), form_update(now)
    new_magnitude = form_update(now._replace(factors=(a1, b1, c, d)))
    new_direction = form_update(now._replace(factors=(a, b, c1, d1)))
    return (
        ((new_magnitude - old) + (new - new_direction)) / 2,
        ((new_direction - old) + (new - new_magnitude)) / 2,
    )


def lowering_share(change: Tensor, gradient: Tensor) -> float | None:
    """Return the share of a change that lowers the loss to first order, entries weighted by their size; None for 0."""
    size = change.abs()
    total = float(size.sum())
    return float(size[change * gradient.sign() < 0].sum()) / total if total else None


class ClipWatch:
    """Counts how often the straight-through clip would act, for one training step.

    It forms G = ∂L/∂W from a layer's input and output gradient and from it Q = s · G ⊙ U, per backward call, as the
    layer does. Between forward and backward it only holds references to tensors that autograd keeps anyway.
    `gradient` is G of all its backward calls, float32 (out, in), if asked for; else None.
    """

    def __init__(self, layer: DualLoraLinear, *, keep_gradient: bool = False) -> None:
        self.layer = layer
        shape, device = (layer.out_features, layer.in_features), layer.factors(ADAPTER)[0].device
        self.gradient = torch.zeros(shape, device=device) if keep_gradient else None
        self.clipped = 0
        self.entries = 0
        self.largest = 0.0
        self._inputs: list[Tensor] = []
        self._handles = [
            layer.register_forward_hook(self._forward),
            layer.register_full_backward_hook(self._backward),
        ]

    def _forward(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer.training and torch.is_grad_enabled():
            self._inputs.append(inputs[0].detach())

    @torch.no_grad()
    def _backward(self, layer: Any, grad_input: Any, grad_output: tuple[Tensor | None, ...]) -> None:
        gradient = grad_output[0]
        if gradient is None or not self._inputs:
            return
        x = self._inputs.pop().flatten(0, -2).float()
        weight_gradient = gradient.flatten(0, -2).float().T @ x
        if self.gradient is not None:
            self.gradient += weight_gradient
        magnitude, _ = products(self.layer)
        if self.layer.spec[ADAPTER].magnitude_activation != "identity":
            magnitude = magnitude.relu()
        q = (self.layer.delta_warmup * self.layer.scaling[ADAPTER] * weight_gradient * magnitude).abs()
        self.clipped += int((q > 1).sum())
        self.entries += q.numel()
        self.largest = max(self.largest, float(q.max()))

    def remove(self) -> dict[str, float]:
        """Remove the hooks and return the share of clipped entries and the largest |Q|."""
        for handle in self._handles:
            handle.remove()
        return {"clipped_share": self.clipped / self.entries if self.entries else 0.0, "max_abs_q": self.largest}
