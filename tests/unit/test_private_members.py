"""What is private in a library may change with any release: each such name that we use has a reason here."""

from __future__ import annotations

import ast
import inspect

from dual_lora.training.trainer import _ShardedTrainer
from dual_lora.tuner import DualLoraLinear
from dual_lora.tuner.model import DualLoraModel
from tests import ROOT

CALLED = {
    "_C": "torch: the two below",
    "_cuda_getCurrentRawStream": "torch: `current_stream` makes an object, at each launch of a kernel",
    "_are_functorch_transforms_active": "torch: no public way to ask whether torch.func computes",
    "_cuda_endAllocateToPool": "torch: a recording that failed leaves its memory pool open",
    "_cuda_releasePool": "torch: as above",
    "_foreach_add_": "torch: one launch for all gradients, as in torch's own optimizers",
    "_foreach_copy_": "torch: one launch for all inputs of a graph",
    "_foreach_mul_": "torch: one launch, for shards and whole tensors together, which torch's clipping refuses",
    "_foreach_norm": "torch: one launch for all norms, in float64",
    "_DropoutNd": "torch: the base of all its dropouts",
    "_is_in_bad_fork": "torch: no public way to ask whether a fork inherited the driver",
    "_backward_hooks": "torch: no public way to ask whether a tensor has hooks",
    "_forward_hooks": "torch: no public way to ask whether a module has hooks",
    "_forward_pre_hooks": "torch: as above",
    "_modules": "torch: as an attribute each factor takes ten times as long, 0.6 µs, in each call of a layer",
    "_attn_implementation": "transformers: no public way to ask which attention a model computes",
    "_prepare_inputs": "transformers: what its own prediction_step does with a batch",
    "_n_gpu": "transformers: no setting keeps the Trainer from torch's DataParallel",
    "_get_available_adapters": "peft: no public way to ask a layer",
    "_get_in_out_features": "peft: the widths of quantized and partitioned layers, as its own tuners find them",
    "_get_header_dict": "hydra: a config source reads its files' headers by it",
    "_normalize_file_name": "hydra: a config source names its files by it",
    "_make_sbatch_string": "submitit: its job script for a plan, on a machine without SLURM",
    "_option_string_actions": "argparse: no public way to ask for a parser's options",
    **dict.fromkeys(["_name_", "_value_"], "enum: PEFT's types cannot be extended otherwise (tuner/registration.py)"),
    **dict.fromkeys(["_member_map_", "_member_names_", "_value2member_map_"], "enum: as above"),
}
PUBLIC = {"_replace": "a named tuple's", "_exit": "os._exit"}  # documented, in spite of their names
OVERRIDDEN = {
    "_clip_grad_norm": "Trainer: a norm whose bits do not depend on how gradients are split",
    "_get_grad_norm": "Trainer: as above, where nothing is clipped",
    "_get_train_sampler": "Trainer: the order of the examples is a function of seed and epoch alone",
    "_save_checkpoint": "Trainer: losses are flushed before, and a manifest is written after a checkpoint",
    "_load_from_checkpoint": "Trainer: of a sharded model every process reads its own rows",
    "_save_optimizer_and_scheduler": "Trainer: a sharded optimizer is saved as that of one process",
    "_load_optimizer_and_scheduler": "Trainer: as above",
    "_create_and_replace": "BaseTuner: every tuner has it",
    "_cast_adapter_dtype": "BaseTuner: half precision on request alone",
    "_enable_peft_forward_hooks": "PeftModel enters it: the adapter of each row",
    "_remap_adapter_state_dict_for_load": "BaseTuner: names of factors in older files",
    "_move_adapter_to_device_of_base_layer": "BaseTunerLayer: PEFT's would round the factors to the base's dtype",
    "_replace_module": "BaseTuner: it breaks layers that have a property `weight` (tuner/registration.py)",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_each_private_member_that_is_called_has_a_reason():
    ours, used = set(), set()
    for path in (ROOT / "dual_lora").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                ours.add(node.id)
            elif isinstance(node, ast.Attribute):
                of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                (ours if of_self and isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("dual_lora"):
                used |= {alias.name for alias in node.names}
    foreign = {name for name in used - ours if is_private(name)}
    assert foreign == CALLED.keys() | PUBLIC.keys()


def test_each_private_method_that_is_overridden_has_a_reason():
    found = set()
    for kind in (_ShardedTrainer, DualLoraModel, DualLoraLinear):
        own = [base for base in kind.__mro__ if base.__module__.startswith("dual_lora")]
        theirs = {name for base in kind.__mro__ if base not in own for name in vars(base)}
        methods = {name for base in own for name, value in vars(base).items() if inspect.isroutine(value)}
        methods |= {name for base in own for name, value in vars(base).items() if isinstance(value, classmethod)}
        found |= {name for name in methods & theirs if is_private(name)}
    assert found <= OVERRIDDEN.keys(), found - OVERRIDDEN.keys()
    assert OVERRIDDEN.keys() - found <= {"_enable_peft_forward_hooks"}, "PEFT has it on the model, not on the tuner"
