"""Weights split over processes by `fully_shard`, against the same model in one process; and what is refused."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dual_lora import DualLoraConfig
from dual_lora.config import ConfigError
from dual_lora.distributed import sharding
from dual_lora.launch import check
from dual_lora.methods import merged
from dual_lora.models import shards
from tests.small_cells import config

TARGETS = ["q_proj", "down_proj"]
METHODS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=3, target_modules=TARGETS),
    "dora": LoraConfig(r=3, use_dora=True, target_modules=TARGETS),
    "pissa": LoraConfig(r=3, init_lora_weights="pissa", target_modules=TARGETS),
    "relative": DualLoraConfig(r_magnitude=3, r_direction=3, init_std="relative:0.3", target_modules=TARGETS),
}


def make_base(tied: bool = False) -> LlamaForCausalLM:
    """Return a LLaMA with rows that no two or four processes share evenly."""
    sizes = {"hidden_size": 16, "intermediate_size": 27, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=65, num_key_value_heads=2, tie_word_embeddings=tied, **sizes))


def split(base: LlamaForCausalLM) -> LlamaForCausalLM:
    sharding.shard(base, "cpu")
    return base


def tokens(process: int) -> torch.Tensor:
    return torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(process))


def in_group(processes: int, body: Callable[[Path], None], folder: Path) -> None:
    """Run `body` in that many processes; forked, as an interpreter that imports torch takes longer than all of it."""
    meeting = f"file://{folder / 'meeting'}"
    torch.multiprocessing.start_processes(
        _member, (processes, body, meeting, folder), nprocs=processes, start_method="fork"
    )


def _member(rank: int, processes: int, body: Callable[[Path], None], meeting: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    body(folder)
    dist.destroy_process_group()


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in sharding.whole_weights(model, here=True).items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# ---------------------------------------------------------------- rows


def rows_of_each(_: Path) -> None:
    """Each process holds what torch says that it holds, and writes it back to where it was."""
    base = make_base()
    whole = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    held = dict(split(base).named_parameters())
    assert held.keys() == whole.keys()
    for name, parameter in held.items():
        assert sharding.is_shard(parameter), name
        own = whole[name][sharding.own_slice(parameter)]
        assert torch.equal(parameter.to_local(), own), name
        assert len(own) < len(whole[name]), name
        assert torch.equal(sharding.rows_as(parameter, own).full_tensor(), whole[name]), name
        sharding.write(parameter, whole[name] + 1)
        assert torch.equal(sharding.whole(parameter), whole[name] + 1), name
    assert_equal(sharding.whole_weights(base, here=True), {name: tensor + 1 for name, tensor in whole.items()})
    assert sharding.whole_weights(base, here=False) == {}


def test_each_process_holds_its_rows(tmp_path: Path) -> None:
    in_group(4, rows_of_each, tmp_path)


def tied_stay_whole(_: Path) -> None:
    base = split(make_base(tied=True))
    assert base.lm_head.weight is base.model.embed_tokens.weight
    shards_of = {name: sharding.is_shard(parameter) for name, parameter in base.named_parameters()}
    assert {name for name, held in shards_of.items() if not held} == {"model.embed_tokens.weight"}


def test_embeddings_tied_to_the_output_stay_whole(tmp_path: Path) -> None:
    in_group(2, tied_stay_whole, tmp_path)


# ---------------------------------------------------------------- adapters


def adapters_begin_alike(_: Path) -> None:
    for name, settings in METHODS.items():
        models = []
        for base in (make_base(), split(make_base())):
            torch.manual_seed(1)
            with sharding.whole_while_adapted():
                models.append(get_peft_model(base, copy.deepcopy(settings)))
        alone, ours = models
        trained = {key for key, parameter in alone.named_parameters() if parameter.requires_grad}
        for key, parameter in ours.named_parameters():
            assert parameter.requires_grad == (key in trained), f"{name}: {key}"
            assert sharding.is_shard(parameter) == (key not in trained), f"{name}: {key}"
        assert_equal(sharding.whole_weights(ours, here=True), dict(alone.state_dict()))
        before = {key: tensor for key, tensor in make_base().state_dict().items() if key.split(".")[-2] in TARGETS}
        state = alone.state_dict()
        after = {key: state[f"base_model.model.{key.replace('.weight', '.base_layer.weight')}"] for key in before}
        assert all(torch.equal(after[key], before[key]) for key in before) == (name != "pissa")


def test_adapters_begin_as_in_one_process_and_the_base_stays_frozen(tmp_path: Path) -> None:
    """DoRA and Dual LoRA's relative start read the base, PiSSA changes it: all layers, the last one included."""
    in_group(2, adapters_begin_alike, tmp_path)


# ---------------------------------------------------------------- training


def train(model: nn.Module, processes: range, steps: range, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train a model that holds all its weights on the micro-batches of all processes; return the optimizer's state."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        for process in processes:
            batch = tokens(10 * step + process)
            (model(batch, labels=batch).loss / len(processes)).backward()
        sharding.clip_together(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.state_dict()


def train_split(model: nn.Module, steps: range, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """As `train`, with one micro-batch a process."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    if any(map(sharding.is_shard, trained)):
        sharding.reduce_in_order(model)
    if state is not None:
        sharding.load_whole_state(optimizer, state)
    for step in steps:
        batch = tokens(10 * step + dist.get_rank())
        model(batch, labels=batch).loss.backward()
        sharding.average_gradients(trained)
        sharding.clip_together(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return sharding.whole_state(optimizer)


def full_and_adapter(_: Path) -> None:
    everyone = range(dist.get_world_size())
    for tied in (False, True):
        alone, ours = make_base(tied), split(make_base(tied))
        train(alone, everyone, range(3))
        train_split(ours, range(3))
        assert_equal(sharding.whole_weights(ours, here=True), dict(alone.state_dict()))
    for name in ("dora", "relative"):
        models = []
        for base in (make_base(), split(make_base())):
            torch.manual_seed(1)
            with sharding.whole_while_adapted():
                models.append(get_peft_model(base, copy.deepcopy(METHODS[name])))
        train(models[0], everyone, range(3))
        train_split(models[1], range(3))
        assert_equal(sharding.whole_weights(models[1], here=True), dict(models[0].state_dict()))


def test_four_processes_train_as_one_to_the_last_bit(tmp_path: Path) -> None:
    """Everything trained (shards' gradients, tied embeddings' whole ones) and adapters; clipped at every step."""
    in_group(4, full_and_adapter, tmp_path)


def continues(folder: Path) -> None:
    """Two processes write, one continues, and the other way round; against one process that never stopped."""
    both = range(2)
    straight, ours = make_base(), split(make_base())
    train(straight, both, range(4))
    states = [train_split(ours, range(2))]
    weights = [sharding.whole_weights(ours, here=True)]
    resumed = make_base()
    resumed.load_state_dict(weights[0])
    train(resumed, both, range(2, 4), states[0])
    assert_equal(dict(resumed.state_dict()), dict(straight.state_dict()))
    first = make_base()
    state = train(first, both, range(2))
    again = split(make_base())
    for name, parameter in again.named_parameters():
        sharding.write(parameter, first.state_dict()[name])
    after = train_split(again, range(2, 4), state)
    assert_equal(sharding.whole_weights(again, here=True), dict(straight.state_dict()))
    shapes = [parameter.shape for parameter in straight.parameters()]
    assert [after["state"][number]["exp_avg"].shape for number in range(len(shapes))] == shapes


def test_another_number_of_processes_continues_full_fine_tuning(tmp_path: Path) -> None:
    in_group(2, continues, tmp_path)


def main_saves_alone(folder: Path) -> None:
    """After a pass without gradients nothing is gathered, so that one process can free and save by itself."""
    base = split(make_base())
    with torch.no_grad():
        base(tokens(0))
    assert all(sharding.is_shard(parameter) for parameter in base.parameters())
    if dist.get_rank() == 0:
        for unit in sharding.units(base):
            unit.reshard()
    with torch.no_grad():
        base(tokens(0))
    loss = base(tokens(0), labels=tokens(0)).loss
    loss.backward()
    assert all(sharding.is_shard(parameter) for parameter in base.parameters())


def test_weights_are_freed_after_passes_without_gradients(tmp_path: Path) -> None:
    in_group(2, main_saves_alone, tmp_path)


# ---------------------------------------------------------------- merging


def merges(_: Path) -> None:
    """As one process merges, to the last bit, twice; the base is back afterwards and training goes on."""
    for name, settings in METHODS.items():
        logits, models = [], []
        for base in (make_base(), split(make_base())):
            torch.manual_seed(1)
            with sharding.whole_while_adapted():
                model = get_peft_model(base, copy.deepcopy(settings)).eval()
            draw = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
                before = copied(model), model(tokens(0)).logits
                for _ in range(2):
                    with merged(model) as plain:
                        logits.append(plain(tokens(0)).logits)
                        during = copied(model)
                    torch.testing.assert_close(logits[-1], before[1], rtol=1e-4, atol=1e-5)
                    changed = {key for key in during if not torch.equal(during[key], before[0][key])}
                    assert {key.split(".")[-3] for key in changed} == {*TARGETS}, f"{name}: {changed}"
                    assert_equal(copied(model), before[0])
                    assert torch.equal(model(tokens(0)).logits, before[1])
            models.append(model)
        assert all(torch.equal(found, logits[0]) for found in logits), name
        models[1](tokens(0), labels=tokens(0)).loss.backward()


def test_split_weights_are_merged_as_whole_ones(tmp_path: Path) -> None:
    in_group(2, merges, tmp_path)


# ---------------------------------------------------------------- files


def read_from(folder: Path) -> None:
    expected = load_file(folder / "model" / "model.safetensors")
    settings = LlamaConfig.from_pretrained(folder / "model")
    arguments = (settings, (), torch.float32, torch.device("cpu"))
    found = shards.read(AutoModelForCausalLM, folder / "model", *arguments)
    assert found is not None
    model, unused = found
    assert unused == []
    for name, parameter in model.named_parameters():
        assert torch.equal(sharding.whole(parameter.detach()), expected[name]), name
        own = shards.own_part(folder / "model" / "model.safetensors", name, parameter)
        assert torch.equal(own, parameter.to_local()), name
        assert len(own) < len(expected[name]), "a process reads its rows alone"
    with torch.no_grad():
        logits = model(tokens(0)).logits
    torch.testing.assert_close(logits, make_base()(tokens(0)).logits, rtol=0, atol=0)
    assert shards.read(AutoModelForCausalLM, folder / "renamed", *arguments) is None


def test_a_checkpoint_is_read_by_rows(tmp_path: Path) -> None:
    """Files whose names are not the model's are left to transformers, which converts them."""
    make_base().save_pretrained(tmp_path / "model")
    make_base().save_pretrained(tmp_path / "renamed")
    file = tmp_path / "renamed" / "model.safetensors"
    save_file({name.replace("q_proj", "query"): t for name, t in load_file(file).items()}, file, {"format": "pt"})
    in_group(2, read_from, tmp_path)


# ---------------------------------------------------------------- refusals


def test_quantized_weights_are_refused() -> None:
    base = make_base()
    layer = base.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(27, 16, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight is torch\.uint8.*launch=torchrun"):
        sharding.shard(base, "cpu")


def test_galore_is_refused(tmp_path: Path) -> None:
    """It projects gradients of whole matrices."""
    with pytest.raises(ConfigError, match="galore_adamw.*launch=torchrun"):
        check(config(tmp_path, "method=galore", "launch=fsdp", "launch.num_gpus=2"))
    check(config(tmp_path, "method=lora", "launch=fsdp", "launch.num_gpus=2"))
