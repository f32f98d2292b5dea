"""Weights split over processes by `fully_shard`, against the same model in one process; and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from dual_lora.config import ConfigError
from dual_lora.distributed import sharding
from dual_lora.launch import check
from dual_lora.methods import merged
from dual_lora.models import shards
from tests.small_cells import config
from tests.split_llama import METHODS, TARGETS, adapted, assert_equal, in_group, make_base, split, tokens


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in sharding.whole_weights(model, here=True).items()}


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
    for name in METHODS:
        alone, ours = (adapted(base, name) for base in (make_base(), split(make_base())))
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
    for name in METHODS:
        logits, models = [], []
        for base in (make_base(), split(make_base())):
            model = adapted(base, name).eval()
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
