"""DeepSpeed's configuration, made from the run's typed one: no JSON file next to it could disagree.

Precision is the Trainer's without DeepSpeed: the base in its own dtype, what is trained in float32, bfloat16 autocast
around the forward pass. DeepSpeed's `bf16` mode would hold the trained weights in bfloat16 and so change the result,
and Dual LoRA's sign depends on float32 factors; it stays off. Autocast has to be asked of DeepSpeed itself: on a GPU
its engine switches off the one around it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from dual_lora.config import RunConfig
from dual_lora.config.schedule import Batches

_REDUCE_BUCKET = 500_000_000  # elements, DeepSpeed's default
_SMALLEST_BUCKET = 2_000_000


def zero_stage(config: RunConfig, world_size: int) -> int:
    """Return the ZeRO stage that is used.

    With one process, stages 1 and 2 have nothing to split, and their hooks on every parameter would cost a third of a
    small step (`run.py bench zero`); unless the optimizer's state goes to host memory, stage 0 does the same.
    """
    launch = config.launch
    return 0 if world_size == 1 and launch.zero_stage in (1, 2) and not launch.offload else launch.zero_stage


def deepspeed_config(
    config: RunConfig,
    batches: Batches,
    dtype: str,
    trained_elements: int | None = None,
    block_elements: int = 0,
) -> dict[str, Any] | None:
    """Return what DeepSpeed is configured with, or None where the run's engine is another.

    dtype: "bfloat16" to compute in it, else "float32".
    trained_elements: of all processes together; None where nothing is trained.
    block_elements: of the largest part that stage 3 fetches as one; the next of them is fetched ahead.

    The learning rate, its schedule and the optimizer are the Trainer's and do not appear. Thresholds are DeepSpeed's
    defaults.
    """
    launch = config.launch
    if launch.engine != "deepspeed":
        return None
    zero: dict[str, Any] = {"stage": zero_stage(config, batches.world_size)}
    if launch.zero_stage == 3:
        if block_elements:
            zero["stage3_prefetch_bucket_size"] = block_elements
        # A model that is not a PEFT model is saved whole, which needs its shards gathered.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if trained_elements is not None:
        # Stages 2 and 3 hold a float32 buffer of this size, by default 2 GB. A message below 8 MB (a guess) is mostly
        # delay.
        bucket = max(trained_elements // 8, min(trained_elements, _SMALLEST_BUCKET))
        zero["reduce_bucket_size"] = min(_REDUCE_BUCKET, max(1, bucket))
    if launch.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": launch.device != "cpu"}
        if launch.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": launch.device != "cpu"}
    return {
        "train_batch_size": batches.global_batch,
        "train_micro_batch_size_per_gpu": batches.per_device,
        "gradient_accumulation_steps": batches.accumulation,
        "gradient_clipping": config.recipe.max_grad_norm,
        "zero_optimization": zero,
        # No "safe modules": their gradients would be summed over the processes in bfloat16.
        "torch_autocast": {
            "enabled": dtype == "bfloat16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        # Nothing reads its rates, and for each it waits for the GPU at every step.
        "timers": {"throughput": {"enabled": False}},
        # The optimizer comes from the method (LoRA+, GaLore, plain AdamW); offloading works with any of them.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def trust_own_types(config: RunConfig) -> None:
    """Name the classes that DeepSpeed's checkpoints hold next to tensors: no other is unpickled (`lifecycle.run`)."""
    if config.launch.engine != "deepspeed":
        return
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])


def compile_nothing(config: RunConfig) -> None:
    """Start without the operation that DeepSpeed compiles on a CPU: up to a minute, and a C++ compiler is needed.

    It is an all-reduce in shared memory, which only tensor-parallel layers call; what is used here takes gloo's.
    """
    if config.launch.engine != "deepspeed" or config.launch.device != "cpu":
        return
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def partition_while_loading(config: RunConfig, batches: Batches, dtype: str) -> Any:
    """Make transformers create and load weights in shards from now on (ZeRO-3), until the returned object is dropped.

    dtype: "float32" or "bfloat16", of the shards. DeepSpeed makes them in the dtype of its own precision mode, whatever
    transformers loads: without one, a bfloat16 base would be held and sent around in float32.

    None where weights are loaded whole: other stages and engines, and the random models of the tests, whose weights are
    drawn and not read; DeepSpeed shards those when training begins.
    """
    settings = deepspeed_config(config, batches, "float32")
    from_files = config.model.source != "random" or config.model.path
    if settings is None or config.launch.zero_stage != 3 or not from_files:
        return None
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    settings["bf16"] = {"enabled": dtype == "bfloat16"}  # while loading only: training computes under autocast
    # DeepSpeed takes over the group that is there; until it has, it believes that there is one process.
    backend = "gloo" if config.launch.device == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return HfDeepSpeedConfig(settings)


def ready_to_evaluate(model: Any, config: RunConfig, batches: Batches) -> None:
    """Let a sharded model be called where no training in this process has prepared it; others are left alone."""
    if config.launch.engine != "deepspeed":
        return
    # Generation would otherwise wait for the other processes at every token; `processes.computing_together` does so
    # where it is needed.
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    parameters = list(model.parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters) or hasattr(model, "ds_inflight_param_registry"):
        return
    import deepspeed

    settings = deepspeed_config(config, batches, "float32", block_elements=gather_whole_blocks(model))
    assert settings is not None
    settings["zero_optimization"].pop("offload_optimizer", None)
    deepspeed.initialize(model=model, config=settings)
    register_factors(model)


def gather_whole_blocks(model: torch.nn.Module) -> int:
    """Make ZeRO-3 gather and free each transformer block as one; return the elements of the largest, 0 without any.

    Its hooks otherwise sit on each of a block's modules, several of them in every adapted layer, and each gathers its
    one or two tensors. To be called before DeepSpeed prepares the model. A block's gradients are then handed over once
    its input has got its own, so the input of one that trains anything asks for a gradient, as with checkpointing.
    """
    from deepspeed.utils import set_z3_leaf_module

    largest = 0
    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            set_z3_leaf_module(block, True)
            parameters = list(block.parameters())
            largest = max(largest, sum(getattr(item, "ds_numel", item.numel()) for item in parameters))
            if any(item.requires_grad for item in parameters):
                block.register_forward_pre_hook(_input_with_gradient)
    return largest


def _input_with_gradient(block: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    if torch.is_grad_enabled() and inputs and torch.is_tensor(inputs[0]) and not inputs[0].requires_grad:
        inputs[0].requires_grad_(True)


def register_factors(model: torch.nn.Module) -> None:
    """Tell ZeRO-3 which modules read parameters that another owns: in a `ParameterDict`, or a `tuner.factor`.

    DeepSpeed notices by itself, but not before one is read while it is away. By then the order in which it gathers
    parameters is recorded without them, and the next pass ends in its "tracing error": so did evaluations in several
    batches after a resume. Nothing under other stages.
    """
    import deepspeed

    for module in model.modules():
        for child in module.children():
            held: list[Any] = list(child.values()) if isinstance(child, torch.nn.ParameterDict) else []
            if isinstance(child, torch.nn.ModuleDict):
                held = [factor.weight for factor in child.values() if hasattr(factor, "returns_its_weight")]
            for parameter in held:
                if hasattr(parameter, "ds_id"):
                    deepspeed.zero.register_external_parameter(module, parameter)
