"""Dual LoRA (arXiv 2512.03402) as a PEFT method, and the benchmark suite around it.

`import dual_lora` registers the method with PEFT, so that `PeftModel.from_pretrained` and transformers' `load_adapter`
read its checkpoints:

    import dual_lora
    model = peft.get_peft_model(base_model, dual_lora.DualLoraConfig(r_magnitude=16, r_direction=16, alpha=32))

Private to this project's own command-line programs: while the environment variable `_DUAL_LORA_LAZY` is set, the
registration (which imports torch, transformers and peft: seconds) waits until a public name is used, because
`run.py --help` has to answer before any of these is loaded. They set the variable around the import and remove it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dual_lora.tuner import (
        DeltaWarmupCallback,
        DualLoraConfig,
        DualLoraLinear,
        DualLoraModel,
        set_delta_warmup,
    )

__all__ = ["DeltaWarmupCallback", "DualLoraConfig", "DualLoraLinear", "DualLoraModel", "set_delta_warmup"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("dual_lora.tuner"), name)
    raise AttributeError(f"module 'dual_lora' has no attribute {name!r}; its public names are {', '.join(__all__)}")


if not os.environ.get("_DUAL_LORA_LAZY"):
    importlib.import_module("dual_lora.tuner")
