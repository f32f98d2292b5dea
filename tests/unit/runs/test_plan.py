"""Steps, batches and plans: the recipe fixes the experiment, the machine only how it is cut up."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from dual_lora import methods, models, tasks
from dual_lora.commands import main
from dual_lora.config import ConfigError, RunConfig, recipes
from dual_lora.config.compose import compose
from dual_lora.config.schedule import plan_batches, plan_steps, plan_warmup
from dual_lora.distributed.deepspeed import deepspeed_config
from dual_lora.runs.plan import describe, plan
from dual_lora.runs.resolve import resolve
from dual_lora.training import arguments


@functools.cache
def cell(*arguments: str) -> RunConfig:
    return compose(["model=llama2", "task=commonsense", "method=dual_lora", *arguments])[0]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_the_number_of_devices_never_changes_the_global_batch(world_size: int) -> None:
    batches = plan_batches(cell("recipe.global_batch=16"), world_size)
    assert batches.per_device * batches.accumulation * world_size == 16


@pytest.mark.parametrize(("setting", "world_size"), [("launch.per_device_batch=5", 1), ("launch.num_gpus=3", 3)])
def test_a_remainder_is_an_error_that_lists_what_divides(setting: str, world_size: int) -> None:
    with pytest.raises(ConfigError, match=r"1, 2, 4, 8, 16"):
        plan_batches(cell("recipe.global_batch=16", setting), world_size)


def test_steps_are_epochs_of_the_examples_bounded_by_the_profile() -> None:
    config = cell("recipe.global_batch=16", "recipe.epochs=3")
    assert plan_steps(config, 100) == (21, 7)
    bounded = dataclasses.replace(config, profile=dataclasses.replace(config.profile, max_steps=5))
    assert plan_steps(bounded, 100) == (5, 7)


@pytest.mark.parametrize("method", ["lora", "dual_lora"])
def test_a_plan_counts_the_blocks_that_are_adapted(method: str, tmp_path: Path) -> None:
    words = ["model=tiny_llama", "task=e2e", f"method={method}", "data.source=sample", "task.metrics=[BLEU]"]
    (config,) = compose([*words, "method.layers_to_transform=[1]", f"results={tmp_path}"])
    loaded = models.load(config.model, tasks.load(config).head, dtype="float32", seed=0)
    model = methods.apply(loaded.model, config.method, model_config=config.model, head=tasks.load(config).head, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plan(resolve(config, planned=True))["trainable"] == trained > 0


def test_data_that_are_not_there_end_a_plan_in_a_sentence(tmp_path: Path, capsys) -> None:
    words = ["model=tiny_llama", "task=e2e", "method=lora", "data.source=local", f"data.dir={tmp_path}", "plan=true"]
    assert main([*words, f"results={tmp_path}"]) == 2
    assert "train.txt: neither this file nor train.txt.gz was found" in capsys.readouterr().err


def test_a_bounded_run_warms_up_for_a_tenth_at_most() -> None:
    config = cell("recipe.warmup_steps=100")
    assert plan_warmup(config, 50) == 100
    assert plan_warmup(cell("recipe.warmup_steps=100", "profile=quick"), 50) == 5


@pytest.mark.parametrize(
    ("model", "trainable"),
    [("llama2", 56_098_816), ("llama3", 56_623_104), ("llama3_70b", 277_872_640), ("llama_13b", 87_818_240)],
)
def test_dual_loras_published_budgets(model: str, trainable: int) -> None:
    """r1 = r2 = 16 on Q, K, V, Up, Down has the parameters of LoRA r = 32 (0.83, 0.70, 0.39 and 0.67 %)."""

    def planned(*words: str) -> int:
        return plan(resolve(cell(f"model={model}", *words), planned=True))["trainable"]

    assert planned() == trainable
    assert planned("method=lora", "method.r=32") == trainable


def test_a_plan_says_what_would_run_without_weights_or_data() -> None:
    text = describe(resolve(cell("model=llama3_70b", "method.budget=like:lora@16"), planned=True))
    for part in ("run ", "70,553,706,496", "31,932 of batch 16", "GiB a device", "138,936,320 wanted"):
        assert part in text


@pytest.mark.parametrize(
    ("settings", "world_size", "stage"),
    [
        (["launch.zero_stage=2"], 1, 0),  # nothing to split
        (["launch.zero_stage=1"], 1, 0),
        (["launch.zero_stage=2", "launch.offload=true"], 1, 2),  # the optimizer's state leaves the card
        (["launch.zero_stage=2"], 2, 2),
        (["launch.zero_stage=3"], 1, 3),  # weights are read in shards, and may be offloaded
    ],
)
def test_one_process_does_not_pay_for_splitting_nothing(settings: list[str], world_size: int, stage: int) -> None:
    config = cell("launch=deepspeed", f"launch.num_gpus={world_size}", *settings)
    made = deepspeed_config(config, plan_batches(config, world_size), "float32")
    assert made is not None
    assert made["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deepspeed_is_asked_for_autocast_and_for_sums_in_float32(dtype: str) -> None:
    """Its engine switches off the autocast around it (on a GPU), and would sum gradients of linear layers in bf16."""
    config = cell("launch=deepspeed", "launch.num_gpus=2")
    made = deepspeed_config(config, plan_batches(config, 2), dtype)
    assert made is not None
    assert made["torch_autocast"]["enabled"] == (dtype == "bfloat16")
    assert made["torch_autocast"]["lower_precision_safe_modules"] == []
    assert not made["bf16"]["enabled"]


@pytest.mark.parametrize(
    ("trained", "bucket"),
    [(0, 1), (1_000, 1_000), (4_000_000, 2_000_000), (80_000_000, 10_000_000), (70e9, 500_000_000)],
)
def test_gradients_are_summed_in_parts_that_are_worth_a_message(trained: float, bucket: int) -> None:
    config = cell("launch=deepspeed", "launch.num_gpus=2")
    made = deepspeed_config(config, plan_batches(config, 2), "float32", int(trained))
    assert made is not None
    assert made["zero_optimization"]["reduce_bucket_size"] == bucket


def test_the_next_block_is_fetched_ahead_where_weights_are_partitioned() -> None:
    for stage, expected in ((2, None), (3, 200_000_000)):
        config = cell("launch=deepspeed", "launch.num_gpus=2", f"launch.zero_stage={stage}")
        made = deepspeed_config(config, plan_batches(config, 2), "float32", 1_000, block_elements=200_000_000)
        assert made is not None
        assert made["zero_optimization"].get("stage3_prefetch_bucket_size") == expected


def test_one_process_trains_on_one_of_the_gpus_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer would spread each batch over all of them: other batches, and a model that is copied at every step."""

    class SeesTwo(arguments.TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(arguments, "TrainingArguments", SeesTwo)
    config = cell("launch.device=cpu")
    made = arguments.training_arguments(config, plan_batches(config), 10, None, tmp_path, False, None, False)
    assert made.n_gpu == 1


def test_no_recipe_states_a_warm_up_that_has_no_effect() -> None:
    """A recipe may inherit steps or a ratio from its task's default; together, the steps hold."""
    both = []
    for name in recipes.names():
        recipe, default = recipes.find(name), recipes.find(f"default/{'/'.join(name.split('/')[1:-1])}")
        assert recipe is not None
        values = {**(default.values if default else {}), **recipe.values}
        if values.get("warmup_ratio") and values.get("warmup_steps"):
            both.append(name)
    assert not both, f"set warmup_steps or warmup_ratio to 0 in {both}"


def test_a_warm_up_stated_twice_is_refused() -> None:
    config = cell("recipe.warmup_steps=100", "recipe.warmup_ratio=0.06")
    with pytest.raises(ConfigError, match=r"warmup_steps=100 and recipe.warmup_ratio=0.06.* set one of them to 0"):
        resolve(config, planned=True)


def test_smollm2_warms_up_for_the_share_that_its_recipe_states() -> None:
    [config] = compose(["model=smollm2", "task=e2e", "method=lora", "profile=full"])
    assert plan_warmup(config, 2000) == 100


@pytest.mark.parametrize("computes_bfloat16", [True, False])
def test_a_plan_names_the_run_as_it_would_be_named_here(computes_bfloat16, monkeypatch):
    monkeypatch.setattr("dual_lora.models.dtypes.cpu_computes_bfloat16", lambda: computes_bfloat16)
    monkeypatch.setattr("dual_lora.runs.resolve._has_card", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    [config] = compose(["model=smollm2", "task=e2e", "protocol=strict", "data.source=sample", "task.metrics=[BLEU]"])
    planned, real = resolve(config, planned=True), resolve(config)
    assert planned.dtype == real.dtype == ("bfloat16" if computes_bfloat16 else "float32")
    assert planned.run_id == real.run_id
