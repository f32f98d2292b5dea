"""The base is held as the published runs held it, and what that changes is in the name of a run and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dual_lora import methods, models
from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.compose import compose
from dual_lora.config.schedule import plan_validation
from dual_lora.records import digest
from dual_lora.runs.identity import identity, protocol_hash, rebuilt
from dual_lora.runs.resolve import as_published, resolve
from dual_lora.tasks.base import Head
from tests import committed

SMALL = ("data.source=sample", "profile=quick", "launch.device=cpu")


def cell(*words: str) -> RunConfig:
    [config] = compose([*SMALL, *words])
    return config


def active_dropouts(*words: str) -> dict[str, float]:
    """Return module -> probability of every dropout that acts in training, once loaded as a run loads it."""
    config, head = as_published(cell("model=tiny_gpt2", "method=lora", *words)), Head("causal_lm")
    loaded = models.load(config.model, head, dtype="float32", seed=0)
    net = methods.apply(loaded.model, config.method, model_config=config.model, head=head, seed=0).train()
    modules = {name: layer.p for name, layer in net.named_modules() if isinstance(layer, torch.nn.Dropout) and layer.p}
    attention = net.get_base_model().config.attn_pdrop  # read by the attention function, which is no module
    return {**modules, **({"attention": attention} if attention else {})}


@pytest.mark.parametrize("task", ["e2e", "webnlg", "dart"])
def test_gpt2_has_no_dropout_but_loras_under_the_published_protocol(task: str) -> None:
    """microsoft/LoRA examples/NLG/src/model.py, c4593f0: `lora_dropout` is the only dropout that its GPT-2 applies."""
    words = (f"task={task}", "protocol=paper")
    layers = 2 * 2  # query and value of two blocks
    found = active_dropouts(*words, "method.lora_dropout=0.1")
    assert list(found.values()) == [0.1] * layers
    assert all("lora_dropout" in name for name in found)
    assert not active_dropouts(*words, "method.lora_dropout=0.0")


def test_other_protocols_leave_the_checkpoints_dropout_and_the_command_line_wins() -> None:
    # The embeddings, and in each block the attention's two and the MLP's one; the attention's weights are a function's.
    assert len(active_dropouts("task=e2e", "protocol=strict", "method.lora_dropout=0.0")) == 1 + 2 * 3 + 1
    given = active_dropouts("task=e2e", "protocol=paper", "method.lora_dropout=0.0", "model.dropout=0.2")
    assert set(given.values()) == {0.2}
    with pytest.raises(ConfigError, match=r"model.dropout=1.0: it must be a finite number, at least 0 and below 1"):
        cell("model=tiny_gpt2", "task=e2e", "method=lora", "model.dropout=1.0")


PUBLISHED = [  # (model, task, held on a GPU): scripts and READMEs of microsoft/LoRA c4593f0 and NVlabs/DoRA
    ("gpt2_medium", "e2e", "float32"),  # no --fp16
    ("gpt2_large", "dart", "float32"),
    ("roberta_base", "glue/rte", "float32"),  # no --fp16
    ("roberta_large", "glue/mnli", "float32"),
    ("deberta_xxl", "glue/cola", "bfloat16"),  # --fp16
    ("llama", "commonsense", "bfloat16"),  # fp16
    ("llama3", "commonsense", "bfloat16"),
]


@pytest.mark.parametrize(("model", "task", "dtype"), PUBLISHED)
def test_precision_is_part_of_the_published_protocol(model: str, task: str, dtype: str) -> None:
    config = as_published(cell(f"model={model}", f"task={task}", "method=lora", "protocol=paper"))
    assert models.resolve_dtype(config.model, "cuda") == dtype
    given = cell(f"model={model}", f"task={task}", "method=lora", "protocol=paper", "model.dtype=bfloat16")
    assert models.resolve_dtype(as_published(given).model, "cuda") == "bfloat16"
    strict = as_published(cell(f"model={model}", f"task={task}", "method=lora", "protocol=strict"))
    assert models.resolve_dtype(strict.model, "cuda") == "bfloat16"


def test_a_run_is_resolved_to_it() -> None:
    config = cell("model=gpt2_medium", "task=e2e", "method=lora", "data.source=hub", "launch.device=cuda")
    found = resolve(config, planned=True)
    assert (found.dtype, found.config.model.dropout) == ("float32", 0.0)
    assert resolve(found.config, planned=True).identity == found.identity  # as a worker resolves what its parent did


# eval_steps of microsoft/LoRA examples/NLU/deberta_v2_xxlarge_TASK.sh, c4593f0.
LOOKS = {"cola": 20, "mnli": 500, "mrpc": 10, "qnli": 500, "qqp": 500, "rte": 20, "sst2": 100, "stsb": 50}


@pytest.mark.parametrize("task", LOOKS)
def test_debertas_development_set_can_be_looked_at_as_often_as_its_scripts_do(task: str) -> None:
    words = ("model=deberta_xxl", f"task=glue/{task}", "method=lora")
    config = as_published(cell(*words, "protocol.validation_every_steps=recipe"))
    assert plan_validation(config, 10_000, 300) == LOOKS[task]
    given = as_published(cell(*words, f"protocol.validation_every_steps={LOOKS[task]}"))
    assert named(config)["run_id"] == named(given)["run_id"]
    default = as_published(cell(*words))
    assert plan_validation(default, 10_000, 300) == 300
    assert "validation_every_steps" not in named(default)["recipe"]


def test_a_recipe_without_a_cadence_is_asked_for_a_number() -> None:
    words = ("model=roberta_base", "task=glue/rte", "method=lora", "protocol.validation_every_steps=recipe")
    with pytest.raises(ConfigError, match=r"roberta_base/glue/rte/lora has none.*null for once an epoch"):
        as_published(cell(*words))


def named(config: RunConfig) -> dict[str, Any]:
    config = as_published(config)
    return identity(config, dtype="float32", model_fingerprint={}, data_fingerprint={})


def test_the_base_is_in_the_name_of_the_runs_it_changes() -> None:
    words = ("task=e2e", "method=lora")
    gpt2 = named(cell("model=small_gpt2", *words))
    assert gpt2["model"]["dropout"] == 0.0
    assert gpt2["protocol"]["base"] == {"dtype": "float32", "dropout": 0.0}
    assert named(cell("model=small_gpt2", *words, "model.dropout=0.1"))["run_id"] != gpt2["run_id"]
    llama = cell("model=small_llama", *words)
    assert "dropout" not in named(llama)["model"]
    assert "base" not in named(llama)["protocol"]
    assert protocol_hash(llama) != protocol_hash(cell("model=small_gpt2", *words))


def _rebuilt(held: dict[str, Any]) -> dict[str, Any]:
    """Return the identity of a run with the settings that a record holds, and today's defaults for all others."""
    return identity(
        rebuilt(held, "."),
        dtype=held["dtype"],
        model_fingerprint=held["model"]["fingerprint"],
        data_fingerprint=held["data"]["fingerprint"],
        init_from=held["init_from"],
    )


def test_a_setting_that_a_record_does_not_know_changes_no_name() -> None:
    # Of runs that differ in their seed alone one: test_record_names.py has the names of all.
    identities = [values["identity"] for values in committed.values()]
    seeds = {digest({**held, "seed": 0, "run_id": ""}): held for held in identities}
    assert len(seeds) > 100
    for held in seeds.values():
        made = _rebuilt(held)
        assert made["run_id"] == held["run_id"]
        assert made["protocol"]["hash"] == held["protocol"]["hash"]
