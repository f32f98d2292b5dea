"""Everything that works around PEFT, and why.

1. `peft.utils.register_peft_method` accepts only names that are members of the closed enum `PeftType`. Plain strings in
   the mappings get through PEFT but not through transformers' `load_adapter`, which asks for `peft_type.value`. So a
   member is added to the enum at run time.
2. `BaseTuner._replace_module` assigns `new_module.weight = child.weight` whenever a module is put back in place of its
   wrapper. For a wrapped classification head (`modules_to_save`), which has no `weight`, `merge_and_unload` then fails
   with an AttributeError (huggingface/peft issue 3114, still present in 0.21.2).
3. PEFT before 0.21 saves trained biases for the methods that it names only: `bias` is refused there.

`tests/unit/tuner/test_registration.py` asserts that both reasons still hold and fails when a PEFT release changes them.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method

from dual_lora.tuner.factor import PREFIX

PEFT_TYPE_NAME = "DUAL_LORA"


def peft_type() -> PeftType:
    """Return `PeftType.DUAL_LORA`, adding it to PEFT's enum on the first call."""
    if PEFT_TYPE_NAME not in PeftType.__members__:
        # What `EnumType.__new__` does for each member; the enum has no public way to add one.
        member = str.__new__(PeftType, PEFT_TYPE_NAME)
        member._name_ = member._value_ = PEFT_TYPE_NAME
        PeftType._member_names_.append(PEFT_TYPE_NAME)
        PeftType._member_map_[PEFT_TYPE_NAME] = member
        PeftType._value2member_map_[PEFT_TYPE_NAME] = member
        type.__setattr__(PeftType, PEFT_TYPE_NAME, member)
    return PeftType(PEFT_TYPE_NAME)


def register(config_class: type, model_class: type) -> None:
    """Make PEFT know the method. Safe to call twice with the same classes.

    Raises:
        KeyError: another package has registered a different method under the same name.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type()) is config_class:
        return
    register_peft_method(name=PEFT_TYPE_NAME.lower(), config_cls=config_class, model_cls=model_class, prefix=PREFIX)


def saves_biases() -> bool:
    """Return whether PEFT saves the biases that any method trains."""
    return hasattr(BaseTuner, "_get_learnable_bias_state_dict")


class ReplaceModuleWithoutWeight:
    """Mixin for a `BaseTuner` whose `_replace_module` never touches the weight of the module it puts in place."""

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """Put `new_module` in place of `child`; a new adapter layer goes to the device of the weight it wraps."""
        setattr(parent, child_name, new_module)
        if not isinstance(new_module, BaseTunerLayer):
            return  # a base module goes back to its place as it is (this is where PEFT assigns `weight`)
        reference = next(iter(new_module.get_base_layer().parameters()), None)
        on_meta = any(tensor.device == torch.device("meta") for tensor in new_module.adapter_tensors())
        if reference is not None and not on_meta:
            new_module.move_adapters(reference.device)
