"""ms-swift's door: `--tuner_type dual_lora`.

    plugin=$(python -c "import importlib.util as u; print(u.find_spec('dual_lora.integrations.ms_swift').origin)")
    swift sft --external_plugins $plugin --tuner_type dual_lora --callbacks dual_lora_warmup \\
        --lora_rank 32 --lora_alpha 64 --lora_dropout 0.05 --target_modules q_proj k_proj v_proj up_proj down_proj ...

LoRA's settings are read as LoRA's budget and scale: r₁ = r₂ = lora_rank / 2, s₀ = lora_alpha / lora_rank. Resumed
training, `swift infer` and `swift export --merge_lora true` know the tuner from the checkpoint's args.json.
"""

from __future__ import annotations

from typing import Any

from peft import get_peft_model
from swift.callbacks.mapping import callbacks_map
from swift.pipelines.train.tuner import get_target_modules
from swift.tuner_plugin import PeftTuner, tuners_map

from dual_lora.tuner import DeltaWarmupCallback, DualLoraConfig


class DualLoraTuner(PeftTuner):
    """What ms-swift calls for a new adapter; PeftTuner saves and loads it."""

    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        """Return the adapted model.

        Raises:
            ValueError: an odd lora_rank, or a setting of LoRA's that Dual LoRA has not.
        """
        if args.lora_rank % 2:
            raise ValueError(f"lora_rank={args.lora_rank} is split into two groups of equal rank: give an even number.")
        for name in ("use_dora", "use_rslora", "lorap_lr_ratio", "target_parameters"):
            if getattr(args, name, None):
                raise ValueError(f"{name}={getattr(args, name)} is a setting of LoRA and has no meaning for dual_lora.")
        config = DualLoraConfig(
            r_magnitude=args.lora_rank // 2,
            r_direction=args.lora_rank // 2,
            alpha=args.lora_alpha / 2,
            dropout=args.lora_dropout,
            bias=args.lora_bias,
            target_modules=args.target_regex or get_target_modules(args, model),
            modules_to_save=args.modules_to_save or None,
            task_type=args.task_type.upper(),
        )
        return get_peft_model(model, config)


tuners_map["dual_lora"] = DualLoraTuner
callbacks_map["dual_lora_warmup"] = lambda args, trainer: DeltaWarmupCallback()
