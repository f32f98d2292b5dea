"""The factors of an adapter: their names, and the small modules that hold them.

A factor is `LAYER.dual_lowrank_magnitude_A.ADAPTER.weight`. Tools of PEFT's users rely on three things here: the
adapter's name is between dots (TRL copies an adapter so), the module that owns a parameter is called when it is read
(accelerate's offloading and DeepSpeed act on calls), and no name contains `lora_` (LoRA+ and LoRA-FA look for that).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

PREFIX = "dual_lowrank_"
_PARTS = {"A": "magnitude_A", "B": "magnitude_B", "C": "direction_C", "D": "direction_D"}
FACTORS = tuple(f"{PREFIX}{part}" for part in _PARTS.values())
STARTS = tuple(f"{PREFIX}start_{part}" for part in _PARTS.values())
ROW_SCALE = f"{PREFIX}row_scale"  # g (out, 1) of `normalised`

_Value = TypeVar("_Value")
# Version 0.1.0: `LAYER.dual_lora_A.ADAPTER`, in a saved adapter without the adapter's name.
_FORMER = re.compile(r"(?<=\.)dual_lora_(?P<start>start_)?(?P<letter>[ABCD])(?P<adapter>\.[^.]+)?$")


class Factor(nn.Module):
    """Holds one factor, `weight`, and returns it when it is called."""

    returns_its_weight = True  # read by `distributed.deepspeed`

    def __init__(self, value: Tensor, *, trained: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(value, requires_grad=trained)

    def forward(self) -> Tensor:
        """Return the factor itself, or a copy under FSDP, which may free what it gathered when this call ends."""
        # Not `self.weight`: torch's lookup of an attribute costs a layer that computes little.
        weight = self._parameters.get("weight")
        held = type(weight) is nn.Parameter and type(self) is Factor
        return weight if held else self.weight.clone()


def with_current_names(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return a state dict whose factors have the names of today; version 0.1.0 named them otherwise."""
    return {_FORMER.sub(_current, name): value for name, value in state.items()}


def _current(former: re.Match[str]) -> str:
    start, adapter = former["start"] or "", former["adapter"] or ""
    return f"{PREFIX}{start}{_PARTS[former['letter']]}{adapter}.weight"
