"""A tiny LLaMA, whole and split over forked processes by `fully_shard`, and adapters for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dual_lora import DualLoraConfig
from dual_lora.distributed import sharding

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


def adapted(base: nn.Module, name: str) -> nn.Module:
    """Apply one of `METHODS` to a base that is whole or split."""
    torch.manual_seed(1)
    with sharding.whole_while_adapted():
        return get_peft_model(base, copy.deepcopy(METHODS[name]))


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


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
