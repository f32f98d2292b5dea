"""The three choices that change the mathematics of an update, checked in one place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

STE_VARIANTS = ("clipped_gradient", "identity", "hard_tanh")
MAGNITUDE_ACTIVATIONS = ("relu", "identity")
DIRECTION_ACTIVATIONS = ("sign", "identity")


@dataclass(frozen=True, eq=False)  # compared by identity: `update_rule` makes one per choice, and hashing is hot
class UpdateRule:
    """How the products M = BA and P = DC become an update, and how its gradient reaches P.

    With G the gradient of the loss with respect to the weight, s the scaling, U the activated M and V the activated P:

    * ``ste`` (straight-through estimator of Sign): ``clipped_gradient`` (the paper's) passes ``clip(s G U, -1, 1)`` to
      P, ``identity`` passes ``s G U``, ``hard_tanh`` passes ``s G U`` where ``|P| <= 1`` and zero elsewhere.
    * ``magnitude_activation``: ``relu`` (the paper's), or ``identity`` as an ablation.
    * ``direction_activation``: ``sign`` (the paper's, with Sign(0) = -1), or ``identity`` as an ablation; the latter is
      differentiable, so it takes no ``ste`` but the default, which then has no effect.
    """

    ste: str = "clipped_gradient"
    magnitude_activation: str = "relu"
    direction_activation: str = "sign"

    def __post_init__(self) -> None:
        _check("ste", self.ste, STE_VARIANTS)
        _check("magnitude_activation", self.magnitude_activation, MAGNITUDE_ACTIVATIONS)
        _check("direction_activation", self.direction_activation, DIRECTION_ACTIVATIONS)
        if self.direction_activation == "identity" and self.ste != "clipped_gradient":
            raise ValueError(
                f"ste={self.ste!r} has no meaning with direction_activation='identity', which has a true gradient; "
                "leave ste at 'clipped_gradient' or use direction_activation='sign'"
            )


@lru_cache(maxsize=64)
def update_rule(ste: str, magnitude_activation: str, direction_activation: str) -> UpdateRule:
    """The checked rule for three option strings; cached, because every forward pass asks for it."""
    return UpdateRule(ste, magnitude_activation, direction_activation)


def _check(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, legal))}")
