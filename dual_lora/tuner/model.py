"""The PEFT tuner: which modules get a Dual LoRA layer, and what is known about them afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dual_lora.kernels import packed_once
from dual_lora.tuner.config import DualLoraConfig
from dual_lora.tuner.factor import FACTORS, PREFIX, ROW_SCALE, STARTS, with_current_names
from dual_lora.tuner.layer import DualLoraLinear
from dual_lora.tuner.mixed_batch import adapter_of_each_row
from dual_lora.tuner.quantized import quantization_backend
from dual_lora.tuner.registration import ReplaceModuleWithoutWeight, register
from dual_lora.tuner.training_watch import TrainingWatch

# The modules of the commonsense and DoRA recipes; families that they do not name keep PEFT's LoRA default.
ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
TARGET_MODULES = {
    **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2"), ATTENTION_AND_MLP),
}


class DualLoraModel(ReplaceModuleWithoutWeight, BaseTuner):
    """Wraps a model so that the targeted linear layers carry Dual LoRA adapters.

    Use it through PEFT: `get_peft_model(model, DualLoraConfig(...))`.
    """

    prefix = PREFIX
    tuner_layer_cls = DualLoraLinear
    target_module_mapping = TARGET_MODULES

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add the adapter as PEFT does, and watch its training: see `TrainingWatch`."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = self.dual_lora_layers()
        if layers:
            TrainingWatch.of(layers[0]).configs[adapter_name] = self.peft_config[adapter_name]

    def _create_and_replace(
        self,
        peft_config: DualLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **unused: Any,
    ) -> None:
        peft_config = peft_config.of_layer(current_key)
        if isinstance(target, DualLoraLinear):
            target.update_layer(adapter_name, peft_config, inference_mode=peft_config.inference_mode)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        backend = quantization_backend(base, self.model)
        if not isinstance(base, (nn.Linear, Conv1D)) and getattr(backend, "layer_type", None) != "linear":
            embedding = " trainable_token_indices trains some tokens, modules_to_save the whole embedding."
            raise ValueError(
                f"Target module {current_key} is of the class {type(base).__name__}, which is not supported. Dual LoRA "
                "adapts torch.nn.Linear, its quantized forms that PEFT knows, and transformers.pytorch_utils.Conv1D: "
                "narrow target_modules or use exclude_modules." + (embedding if isinstance(base, nn.Embedding) else "")
            )
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"Target module {current_key} is never called: nn.MultiheadAttention reads its weight, so an adapter "
                f"would have no effect. Leave it out with exclude_modules=[{target_name!r}]."
            )
        if isinstance(parent, nn.TransformerEncoderLayer):
            self._without_fast_path(parent)
        layer = DualLoraLinear(target, adapter_name, peft_config, backend)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trainable until it is made active
        self._replace_module(parent, target_name, layer, target)

    def _without_fast_path(self, layer: nn.TransformerEncoderLayer) -> None:
        # In evaluation torch would read the weights there and call no layer.
        layer.activation_relu_or_gelu = 0
        for encoder in self.model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(one is layer for one in encoder.layers):
                encoder.use_nested_tensor = False

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # Factors are made in float32; half precision only on explicit request.
        if autocast_adapter_dtype:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
            return
        for layer in self.dual_lora_layers():
            dtype = layer.weight.dtype
            for group in (getattr(layer, name) for name in (*FACTORS, *STARTS, ROW_SCALE)):
                if adapter_name in group and dtype in (torch.float16, torch.bfloat16):
                    group[adapter_name].to(dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: DualLoraConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        layers = [module for module in model.modules() if isinstance(module, DualLoraLinear)]
        if layers:
            TrainingWatch.of(layers[0]).loaded.add(adapter_name)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, with_current_names(state_dict))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PeftModel enters this around `forward` and `generate`, with their arguments.
        names = kwargs.get("adapter_names")
        with nullcontext() if names is None else adapter_of_each_row(self, names, kwargs.get("num_beams")):
            yield

    def __getattr__(self, name: str) -> Any:
        # Forwarded to the model as in every tuner, which has `generate` or not. No factor changes while it runs.
        found = super().__getattr__(name)
        return packed_once()(found) if name == "generate" else found

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: an update is not linear in its factors, so a weighted sum of updates has none of its own.

        Raises:
            NotImplementedError: always; the message says what adds updates up.
        """
        raise NotImplementedError(
            "A weighted sum of Dual LoRA updates has no factors: ReLU(B A) ⊙ Sign(D C) is not linear in them. To add "
            "updates up make several adapters active, model.base_model.set_adapter([...])."
        )

    def dual_lora_layers(self) -> list[DualLoraLinear]:
        """Return the adapted layers, in the order of the model."""
        return [module for module in self.model.modules() if isinstance(module, DualLoraLinear)]

    def resolved_init_std(self, adapter_name: str = "default") -> dict[str, float | None]:
        """Return σ by module name, as `init_std` was resolved at the adapter's creation (None: loaded, not drawn)."""
        return {
            name: module.init_std[adapter_name]
            for name, module in self.model.named_modules()
            if isinstance(module, DualLoraLinear) and adapter_name in module.init_std
        }

    def kernel_names(self) -> dict[str, int]:
        """Return how many layers run each kernel with the active adapters, on their device and in their current mode.

        For the record of a run: the names are those of `dual_lora.kernels.KernelChoice.name`.
        """
        names: Counter[str] = Counter()
        for layer in self.dual_lora_layers():
            active = [name for name in layer.active_adapters if name in layer.dual_lowrank_magnitude_A]
            if active:
                names[layer.choose_kernel(layer.factors(active[0])[0].device, active).name] += 1
        return dict(names)


register(DualLoraConfig, DualLoraModel)
