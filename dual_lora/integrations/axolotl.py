"""axolotl's door: `adapter: dual_lora`.

    plugins: [dual_lora.integrations.axolotl.DualLoraPlugin]
    adapter: dual_lora
    dual_lora:            # the fields of DualLoraConfig, and warmup_steps of DeltaWarmupCallback
      r_magnitude: 16
      r_direction: 16
      alpha: 32
      target_modules: [q_proj, k_proj, v_proj, up_proj, down_proj]

Training, `lora_model_dir`, preference trainers, inference and `axolotl merge-lora` go through it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftModel, get_peft_model
from pydantic import BaseModel, Field

from dual_lora.tuner import DeltaWarmupCallback, DualLoraConfig

NAME = "dual_lora"
_OTHERS = ("lora_model_dir", "lora_on_cpu", "peft_autocast_adapter_dtype")  # of any adapter


class DualLoraArgs(BaseModel):
    """What axolotl's own settings are extended by."""

    dual_lora: dict[str, Any] | None = Field(
        default=None, description="Fields of dual_lora.DualLoraConfig, and warmup_steps of the warm-up of its update."
    )


class DualLoraPlugin(BasePlugin):
    """Makes axolotl know the adapter. Its `dual_lora` settings are read anew at each call: axolotl keeps one plugin."""

    def register(self, cfg: dict[str, Any]) -> None:
        """Let axolotl merge by loading the adapter: its other way looks for LoRA's factors and would merge nothing."""
        if cfg.get("adapter") == NAME and cfg.get("merge_lora"):
            cfg["merge_method"] = "legacy"

    def get_input_args(self) -> str:
        return f"{__name__}.{DualLoraArgs.__name__}"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        return [AdapterCapabilities(name=NAME)]

    def load_adapter(
        self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[Any, DualLoraConfig] | None:
        """Return the adapted model (None with `config_only`) and its config; None for another adapter.

        Raises:
            ValueError: a key that DualLoraConfig has not, or a setting of LoRA's, which would have no effect.
        """
        if cfg.adapter != NAME:
            return None
        config = _config(cfg)
        if config_only:
            return None, config
        more = {}
        if cfg.peft_autocast_adapter_dtype is not None:
            more["autocast_adapter_dtype"] = cfg.peft_autocast_adapter_dtype
        if cfg.lora_model_dir:
            adapted = PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference, **more)
            return adapted, adapted.peft_config["default"]
        return get_peft_model(model, config, **more), config

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        return [DeltaWarmupCallback((cfg.dual_lora or {}).get("warmup_steps"))] if cfg.adapter == NAME else []


def _config(cfg: Any) -> DualLoraConfig:
    given = sorted(key for key, value in cfg.items() if value and key not in _OTHERS)
    loras = [key for key in given if key.startswith(("lora_", "peft_")) or key == "loraplus_lr_ratio"]
    if loras:
        raise ValueError(
            f"adapter: {NAME} with {', '.join(loras)}: settings of LoRA, which have no effect here; "
            f"give what is meant under `{NAME}:`"
        )
    settings = {key: value for key, value in (cfg.dual_lora or {}).items() if key != "warmup_steps"}
    legal = sorted(field.name for field in dataclasses.fields(DualLoraConfig) if field.init)
    unknown = sorted(set(settings) - set(legal))
    if unknown:
        raise ValueError(f"{NAME}: {', '.join(unknown)} is not known; use warmup_steps or one of {', '.join(legal)}")
    return DualLoraConfig(**{"task_type": "CAUSAL_LM", **settings})
