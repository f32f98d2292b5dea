"""What defines one update dW: its factors, its scaling and the choices that change the mathematics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypedDict

from torch import Tensor

STE_VARIANTS = ("clipped_gradient", "identity", "hard_tanh")
MAGNITUDE_ACTIVATIONS = ("relu", "identity", "closed_relu")
DIRECTION_ACTIVATIONS = ("sign", "identity", "annealed_sign")
_BY_DEFINITION = {"closed_relu", "annealed_sign"}  # what only the kernel `reference` computes, and normalised rows

Factors = tuple[Tensor, Tensor, Tensor, Tensor]  # A (r1, in), B (out, r1), C (r2, in), D (out, r2)
Gradients = tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]  # of x and of the four factors


@dataclass(frozen=True, eq=False)  # compared by identity: `update_spec` makes one per choice, and hashing is hot
class UpdateSpec:
    """How the products M = BA and P = DC become an update, how its gradient reaches P, and which kernel computes it.

    With G the gradient of the loss with respect to the weight, s the scaling, U the activated M and V the activated P:

    * ``ste`` (straight-through estimator of Sign): ``clipped_gradient`` (the paper's) passes ``clip(s G U, -1, 1)`` to
      P, ``identity`` passes ``s G U``, ``hard_tanh`` passes ``s G U`` where ``|P| <= 1`` and zero elsewhere.
    * ``magnitude_activation``: ``relu`` (the paper's), ``identity`` as an ablation, or ``closed_relu``, ReLU whose
      gradient at 0 is 1, so that it passes at B = 0.
    * ``direction_activation``: ``sign`` (the paper's, with Sign(0) = -1), ``identity`` as an ablation, or
      ``annealed_sign``, which is ``tanh(P / (t rms(P)))`` with its own gradient (rms(P) held fixed) where an `Update`
      has a temperature t, and ``sign`` where it has none. The last two take no ``ste`` but the default.
    * ``normalised``: c above 0 divides each row of U V by its root mean square and multiplies it by c g, where g
      (out, 1) is the `Update`'s ``row_scale``. 0: off.
    * ``transposed``: the base weight is (in, out), as GPT-2's Conv1D has it. Factors and dW are not transposed.
    * ``kernel``: one of `dual_lora.kernels.KERNELS`, checked where it is resolved for a device.
    """

    ste: str = "clipped_gradient"
    magnitude_activation: str = "relu"
    direction_activation: str = "sign"
    transposed: bool = False
    kernel: str = "auto"
    normalised: float = 0.0

    def __post_init__(self) -> None:
        _check("ste", self.ste, STE_VARIANTS)
        _check("magnitude_activation", self.magnitude_activation, MAGNITUDE_ACTIVATIONS)
        _check("direction_activation", self.direction_activation, DIRECTION_ACTIVATIONS)
        if self.direction_activation != "sign" and self.ste != "clipped_gradient":
            raise ValueError(
                f"ste={self.ste!r} has no meaning with direction_activation={self.direction_activation!r}, which has a "
                "true gradient; leave ste at 'clipped_gradient' or use direction_activation='sign'"
            )
        special = _BY_DEFINITION & {self.magnitude_activation, self.direction_activation}
        if special or self.normalised:
            if self.kernel not in ("auto", "reference"):
                what = ", ".join(sorted(special)) or f"normalised={self.normalised}"
                raise ValueError(f"kernel={self.kernel!r} does not compute {what}; use kernel='auto' or 'reference'")
            object.__setattr__(self, "kernel", "reference")


class Update(NamedTuple):
    """One update s (U V - U0 V0) of one call: `scaling` is s = w * s0, `start` holds the frozen A0, B0, C0, D0.

    `in_memory`: s and 1 / |s| as two float32 numbers on the device. The fused kernels then read them when they run, so
    that a recorded call follows what is written there; the others take `scaling`.
    `keeps_weight`: the fused kernels keep W0 + dW from forward to backward, where it is built once more otherwise.
    `loss_scale`: what the loss is multiplied by, as fp16 training does; the clip of the gradient moves with it.
    `temperature`: t of an annealed Sign, one float32 number on the device; None for Sign itself.
    `row_scale`: g (out, 1) of normalised rows.
    """

    factors: Factors
    start: Factors | None
    scaling: float
    spec: UpdateSpec
    in_memory: Tensor | None = None
    keeps_weight: bool = False
    loss_scale: float = 1.0
    temperature: Tensor | None = None
    row_scale: Tensor | None = None


def limit(scaling: float, loss_scale: float = 1.0) -> float:
    """Return L / |s|: where the clip of s G U to [-L, L], for a loss that is multiplied by L, acts on G U."""
    return loss_scale / abs(scaling) if scaling else float("inf")


class Options(TypedDict, total=False):
    """Fields of `UpdateSpec` that the public functions take by keyword."""

    magnitude_activation: str
    direction_activation: str
    kernel: str


@lru_cache(maxsize=256)
def update_spec(
    ste: str = UpdateSpec.ste,
    magnitude_activation: str = UpdateSpec.magnitude_activation,
    direction_activation: str = UpdateSpec.direction_activation,
    transposed: bool = UpdateSpec.transposed,
    kernel: str = UpdateSpec.kernel,
    normalised: float = UpdateSpec.normalised,
) -> UpdateSpec:
    """The one `UpdateSpec` of these fields, shared by all layers that have them, as are its kernels' plans.

    Raises ValueError for an unknown option, or an estimator where none is used.
    """
    return UpdateSpec(ste, magnitude_activation, direction_activation, transposed, kernel, normalised)


def _check(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, legal))}")
