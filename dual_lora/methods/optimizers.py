"""The optimizer of a method, for `transformers.Trainer`. The numbers (rates, decay, betas) come from the recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from dual_lora.config import ConfigError, MethodConfig, RecipeConfig
from dual_lora.distributed import sharding
from dual_lora.methods.checks import OPTIMIZER_SETTINGS
from dual_lora.models.head import is_head_parameter
from dual_lora.tuner.factor import PREFIX


def create_optimizer(
    model: nn.Module, method: MethodConfig, recipe: RecipeConfig, target_modules: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters of `model`: AdamW, LoRA+'s or GaLore's.

    Biases and norms do not decay (the Trainer's rule). No group is empty, unlike one of the Trainer's own for most
    adapters.

    Args:
        target_modules: the model's, which GaLore projects unless its settings name others.

    Raises:
        ConfigError: GaLore's target modules match nothing.
    """
    settings = OPTIMIZER_SETTINGS[method.optimizer.name] | method.optimizer.settings
    if method.optimizer.name == "lora_plus":
        return _lora_plus(model, recipe, settings)
    if method.optimizer.name == "galore_adamw":
        return _galore(model, recipe, settings, tuple(settings.pop("target_modules") or target_modules))
    kinds = {
        (parameter.is_cuda, sharding.is_shard(parameter)) for parameter in model.parameters() if parameter.requires_grad
    }
    on_gpu = kinds in ({(True, False)}, {(True, True)})  # one launch updates whole tensors or shards, not both
    groups = [
        {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0}
        for (_, decays), parameters in _grouped(model, set()).items()
    ]
    if settings["direction_rate"] is not None:
        names = {name for name, _ in model.named_parameters() if f".{PREFIX}direction_" in name}
        groups = _with_rate(model, groups, names, settings["direction_rate"] * recipe.learning_rate)
    return torch.optim.AdamW(_with_head_apart(model, groups, recipe), fused=on_gpu, **_adam(recipe))


def _with_head_apart(model: nn.Module, groups: list[dict[str, Any]], recipe: RecipeConfig) -> list[dict[str, Any]]:
    """Return the groups with the head's parameters in groups of their own, which have the head's rate if it has one.

    A head starts from nothing and an adapter at a pretrained model: the best rate of one says little about the other's.
    """
    if recipe.head_learning_rate is None:
        return groups
    head = {name for name, _ in model.named_parameters() if is_head_parameter(model, name)}
    return _with_rate(model, groups, head, recipe.head_learning_rate)


def _with_rate(model: nn.Module, groups: list[dict[str, Any]], names: set[str], rate: float) -> list[dict[str, Any]]:
    """Return the groups with the named parameters in groups of their own, which have this learning rate."""
    chosen = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    apart = []
    for group in groups:
        for is_chosen in (False, True):
            parameters = [one for one in group["params"] if (id(one) in chosen) is is_chosen]
            if parameters:  # DeepSpeed refuses an empty group
                apart.append({**group, "params": parameters, **({"lr": rate} if is_chosen else {})})
    return apart


def _adam(recipe: RecipeConfig) -> dict[str, Any]:
    betas = (recipe.adam_beta1, recipe.adam_beta2)
    return {"lr": recipe.learning_rate, "betas": betas, "eps": recipe.adam_epsilon}


def _grouped(model: nn.Module, projected: set[str]) -> dict[tuple[bool, bool], list[nn.Parameter]]:
    """Group the trainable parameters by (named in `projected`, decays)."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # it does not use the trainer
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in projected, name in decayed), []).append(parameter)
    return groups


def _lora_plus(model: nn.Module, recipe: RecipeConfig, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """LoRA+ (arXiv 2402.12354): the recipe's rate is that of A, B learns `ratio` times as fast.

    PEFT gives the fast rate to every vector as well, the bias of a head included.
    """
    from peft.optimizers import create_loraplus_optimizer

    optimizer = create_loraplus_optimizer(
        model=model,
        optimizer_cls=torch.optim.AdamW,
        loraplus_lr_ratio=float(settings["ratio"]),
        loraplus_lr_embedding=float(settings["embedding_lr"]),
        loraplus_weight_decay=recipe.weight_decay,
        **_adam(recipe),
    )
    # PEFT also makes the groups that stay empty (embeddings, undecayed vectors); DeepSpeed refuses those.
    groups = [group for group in optimizer.param_groups if group["params"]]
    optimizer.param_groups = _with_head_apart(model, groups, recipe)
    return optimizer


def _galore(
    model: nn.Module, recipe: RecipeConfig, settings: dict[str, Any], targets: tuple[str, ...]
) -> torch.optim.Optimizer:
    """GaLore (arXiv 2403.03507): AdamW on the projected gradients of the target layers, plain AdamW on the rest.

    The groups of the Trainer's `optim=galore_adamw`, which would drop the recipe's betas, epsilon and weight decay and
    GPT-2's `Conv1D` layers.
    """
    from galore_torch import GaLoreAdamW

    projected = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and any(name == t or name.endswith(f".{t}") for t in targets)
    }
    if not projected:
        raise ConfigError(f"GaLore has no layer to project: {', '.join(targets) or 'no module'} matches none")
    groups = [
        {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0, **(settings if low else {})}
        for (low, decays), parameters in _grouped(model, projected).items()
    ]
    return GaLoreAdamW(
        _with_head_apart(model, groups, recipe),
        no_deprecation_warning=True,
        **_adam(recipe),
    )
