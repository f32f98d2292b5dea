"""A batch whose rows have different adapters: `model(**inputs, adapter_names=["first", "second", "__base__"])`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from dual_lora.kernels import apply_update

if TYPE_CHECKING:
    from dual_lora.tuner.layer import DualLoraLinear

BASE = "__base__"  # PEFT's word for no adapter


@contextmanager
def adapter_of_each_row(tuner: nn.Module, names: Sequence[str], num_beams: int | None = None) -> Iterator[None]:
    """Give `names` to every module inside that has adapters; beam search repeats each row `num_beams` times.

    Raises:
        ValueError: in training mode, for a name that no layer has, or under beam search of an encoder-decoder model.
    """
    layers = [module for module in tuner.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    known = {name for layer in layers if isinstance(layer, BaseTunerLayer) for name in layer._get_available_adapters()}
    if tuner.training:
        raise ValueError("adapter_names works in evaluation mode only: call model.eval() first.")
    unknown = sorted(set(names) - known - {BASE})
    if unknown:
        raise ValueError(f"adapter_names: there is no adapter {', '.join(unknown)}; use {', '.join(sorted(known))}.")
    if num_beams is not None and num_beams > 1:
        if getattr(getattr(tuner, "config", None), "is_encoder_decoder", False):
            raise ValueError("adapter_names with beam search is not supported for encoder-decoder models: num_beams=1.")
        names = [name for name in names for _ in range(num_beams)]

    def give(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": list(names)}

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(give, with_kwargs=True).remove)
        yield


def forward_of_rows(layer: DualLoraLinear, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
    """Return what `layer` computes with the adapter of each row of x (first dimension).

    Raises:
        ValueError: another number of names than rows, or an adapter that is merged.
    """
    if len(x) != len(names):
        raise ValueError(f"adapter_names has {len(names)} names for {len(x)} rows: give one for each row.")
    if layer.merged:
        raise ValueError(
            f"adapter_names cannot be used while {', '.join(layer.merged_adapters)} is merged: call unmerge_adapter."
        )
    result: Tensor = layer.base_layer(x, *args, **kwargs)
    for name in sorted(set(names).intersection(layer.dual_lowrank_magnitude_A)):
        rows = [row for row, its in enumerate(names) if its == name]
        result[rows] = apply_update(x[rows], None, None, layer.update(name), base=result[rows])
    return result
