"""Bases whose weight is partitioned over processes (ZeRO-3, FSDP2).

This file is also the program that the distributed tests start on two processes: `torchrun FILE zero3 SETTINGS`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dual_lora import DeltaWarmupCallback, DualLoraConfig  # noqa: E402  # as a program, this file sets its own path
from dual_lora.tuner.factor import Factor  # noqa: E402
from tests.unit.tuner.tiny_adapted_model import LLAMA_SIZES  # noqa: E402

ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
SETTINGS = [
    {"init_std": 0.2, "bias": "dual_lora_only", "target_modules": "all-linear"},
    {"init_std": "relative:0.3", "subtract_start": True},
]


def make_base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA_SIZES, attention_bias=True))


def examples() -> list[dict[str, torch.Tensor]]:
    rows = [torch.randint(2, 64, (12,), generator=torch.Generator().manual_seed(i)) for i in range(32)]
    return [{"input_ids": row, "labels": row} for row in rows]


def train(kind: str, settings: dict, folder: Path) -> dict:
    """Train five steps on this many processes and return what must not depend on how the weights are held."""
    arguments = TrainingArguments(
        str(folder / "run"),
        max_steps=5,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        deepspeed=ZERO3 if kind == "zero3" else None,
    )
    base = LlamaForCausalLM.from_pretrained(folder / "base")  # partitioned as it loads, under ZeRO-3
    torch.manual_seed(1)
    model = get_peft_model(base, DualLoraConfig(r_magnitude=3, r_direction=3, **settings))
    layer = model.base_model.dual_lora_layers()[0]
    trainer = Trainer(model, arguments, train_dataset=examples(), callbacks=[DeltaWarmupCallback(2)])
    trainer.train()
    try:
        model.merge_and_unload()
        refusal = ""
    except NotImplementedError as error:
        refusal = str(error)
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "sigma": layer.init_std["default"],
        "update": layer.get_delta_weight("default").norm().item(),
        "kernels": sorted(model.base_model.kernel_names()) if refusal else [],
        "refusal": refusal,
    }


def fully_sharded(settings: dict) -> dict:
    """Three SGD steps on one batch, plain, under FSDP2 by block and by factor, and under FSDP1."""
    from torch.distributed import fsdp, init_device_mesh

    losses = {}
    for kind in ("plain", "sharded", "each factor sharded", "FSDP1"):
        base = make_base()
        torch.manual_seed(1)
        model = get_peft_model(base, DualLoraConfig(r_magnitude=3, r_direction=3, **settings))
        if "sharded" in kind:
            mesh = init_device_mesh("cpu", (2,))
            factors = [module for module in model.modules() if isinstance(module, Factor)]
            for part in (*(factors if "each" in kind else ()), *model.base_model.model.model.layers, model):
                fsdp.fully_shard(part, mesh=mesh)
        elif kind == "FSDP1":  # its policy for adapters makes a unit of each trained module without children
            policy = fsdp_auto_wrap_policy(model)
            wrapped = fsdp.FullyShardedDataParallel(
                model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
            )
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        tokens = torch.arange(2, 22).view(2, 10)
        losses[kind] = []
        for _ in range(3):
            loss = (wrapped if kind == "FSDP1" else model)(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[kind].append(loss.item())
        if kind in ("plain", "sharded"):
            losses[f"{kind} update"] = model.base_model.dual_lora_layers()[0].get_delta_weight("default").norm().item()
    return losses


def run_on_two_processes(kind: str, settings: dict, folder: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    command += [kind, json.dumps(settings), str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=420, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((folder / f"{kind}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_zero3_trains_as_data_parallel_does_and_refuses_to_merge(tmp_path, settings):
    make_base().save_pretrained(tmp_path / "base")
    plain = run_on_two_processes("ddp", settings, tmp_path)
    partitioned = run_on_two_processes("zero3", settings, tmp_path)
    assert partitioned["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert partitioned["sigma"] == pytest.approx(plain["sigma"], rel=1e-6)
    assert partitioned["update"] == pytest.approx(plain["update"], rel=1e-4)
    assert plain["refusal"] == ""
    assert "in one process" in partitioned["refusal"]
    assert partitioned["kernels"] == ["generic, separate update"]


@pytest.mark.slow
def test_fsdp2_trains_as_one_process_does(tmp_path):
    losses = run_on_two_processes("fsdp2", SETTINGS[0], tmp_path)
    for kind in ("sharded", "each factor sharded", "FSDP1"):
        assert losses[kind] == pytest.approx(losses["plain"], rel=1e-5), kind
    assert losses["sharded update"] == pytest.approx(losses["plain update"], rel=1e-4)


def main() -> None:
    kind, settings, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    if kind == "fsdp2":
        torch.distributed.init_process_group("gloo")
    result = fully_sharded(settings) if kind == "fsdp2" else train(kind, settings, folder)
    if int(os.environ["RANK"]) == 0:
        (folder / f"{kind}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
