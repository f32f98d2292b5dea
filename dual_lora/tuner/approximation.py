"""A Dual LoRA adapter as a LoRA adapter of a given rank, for programs that serve LoRA only.

    inputs = layer_inputs(model, batches)           # what each adapted layer sees on a few texts
    write_as_lora(model, folder, rank=32, inputs=inputs)

ΔW has a far higher rank than its factors, so this loses something. Of all B A of rank r, the one that is nearest to ΔW
for inputs X minimizes ‖(ΔW − B A) Xᵀ‖: B has the r leading left singular vectors of ΔW Xᵀ as columns, and A = Bᵀ ΔW.
Without inputs X is the identity, which is the truncated SVD of ΔW that PEFT's `convert_to_lora` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from dual_lora.tuner.factor import PREFIX
from dual_lora.tuner.layer import DualLoraLinear

# A share of X's mean square on every input: what a few texts do not show still counts. A guess, of little effect.
_UNSEEN = 0.01


@torch.no_grad()
def layer_inputs(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the inputs (tokens, in) in float32 of each adapted layer, by its name, while `model` reads the batches.

    Padding counts as any token: give texts one at a time.
    """
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        return lambda _, args: seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]).float())

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in _layers(model).items()]
    try:
        for batch in batches:
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@torch.no_grad()
def low_rank(update: Tensor, rank: int, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return A (r, in) and B (out, r) whose product is nearest to `update` (out, in) for `inputs` (tokens, in).

    r is `rank`, or less where the update has no more directions.
    """
    wide = update.double()
    seen = wide
    if inputs is not None:
        x = inputs.to(wide)
        size = x.square().mean().sqrt()
        seen = torch.cat([wide @ x.T / len(x) ** 0.5, _UNSEEN**0.5 * size * wide], dim=1)
    _, vectors = torch.linalg.eigh(seen @ seen.T)  # in the order of rising eigenvalues
    b = vectors[:, -min(rank, *update.shape) :].flip(1)
    return (b.T @ wide).float().contiguous(), b.float().contiguous()


def write_as_lora(
    model: PeftModel, folder: Path, rank: int, inputs: Mapping[str, Tensor] | None = None, adapter: str = "default"
) -> LoraConfig:
    """Write the adapter as one of LoRA, with α = r; modules and tokens that are trained whole are written as they are.

    inputs: as `layer_inputs` returns them. Returns the configuration that was written.

    Raises:
        ValueError: `rank` is below 1, or the adapter trains biases, which LoRA servers do not take.
    """
    its = model.peft_config[adapter]
    if rank < 1:
        raise ValueError(f"rank = {rank} must be at least 1.")
    if its.bias != "none":
        raise ValueError(f"bias={its.bias!r}: trained biases have no place in a LoRA adapter; merge it instead.")
    whole = get_peft_model_state_dict(model, adapter_name=adapter)
    state = {name: value.contiguous() for name, value in whole.items() if PREFIX not in name}
    layers = _layers(model)
    for name, layer in layers.items():
        update = layer.get_delta_weight(adapter)
        oriented = update.T if layer.transposed else update
        a, b = low_rank(oriented, rank, None if inputs is None else inputs[name])
        padded = rank - len(a)  # a layer with fewer directions than the rank: zeros fill it
        state[f"{name}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, padded)).cpu()
        state[f"{name}.lora_B.weight"] = nn.functional.pad(b, (0, padded)).cpu()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=its.target_modules,
        exclude_modules=its.exclude_modules,
        layers_to_transform=its.layers_to_transform,
        layers_pattern=its.layers_pattern,
        modules_to_save=its.modules_to_save,
        trainable_token_indices=its.trainable_token_indices,
        fan_in_fan_out=any(layer.transposed for layer in layers.values()),
        task_type=its.task_type,
        base_model_name_or_path=its.base_model_name_or_path,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return config


def _layers(model: nn.Module) -> dict[str, DualLoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DualLoraLinear)}
