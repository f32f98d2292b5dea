"""Dual LoRA (arXiv 2512.03402) as a PEFT method, and the benchmark suite around it.

`import dual_lora` registers the method with PEFT, so that `PeftModel.from_pretrained` and transformers' `load_adapter`
read its checkpoints:

    import dual_lora
    model = peft.get_peft_model(base_model, dual_lora.DualLoraConfig(r_magnitude=16, r_direction=16, alpha=32))

Where PEFT is not imported yet the registration waits for that import, so that the command line composes, plans and
writes tables without torch, which takes seconds to load.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dual_lora.tuner import (
        DeltaWarmupCallback,
        DualLoraConfig,
        DualLoraLinear,
        DualLoraModel,
        set_delta_warmup,
        set_loss_scale,
    )

__version__ = "0.1.0"
__all__ = [
    "DeltaWarmupCallback",
    "DualLoraConfig",
    "DualLoraLinear",
    "DualLoraModel",
    "set_delta_warmup",
    "set_loss_scale",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("dual_lora.tuner"), name)
    raise AttributeError(f"module 'dual_lora' has no attribute {name!r}; its public names are {', '.join(__all__)}")


class _RegisterAfterPeft(MetaPathFinder):
    """Registers the method at the end of `import peft`; whoever finds PEFT otherwise finds it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                importlib.import_module("dual_lora.tuner")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    importlib.import_module("dual_lora.tuner")
else:
    sys.meta_path.insert(0, _RegisterAfterPeft())
