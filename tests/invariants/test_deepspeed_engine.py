"""An engine made lighter computes what DeepSpeed's own does, on two processes, with buckets that fill many times.

This file is also the program of the two processes: `torchrun FILE FOLDER`.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dual_lora import DualLoraConfig  # noqa: E402  # as a program, this file sets its own path

BLOCKS, CLIP = 3, 0.05
CASES: dict[str, dict[str, Any]] = {
    "ZeRO-2": {"stage": 2},
    "ZeRO-3, checkpointing": {"stage": 3, "checkpointing": True},
    "ZeRO-1": {"stage": 1},
    "ZeRO-3": {"stage": 3},
    "ZeRO-3, embeddings trained": {"stage": 3, "embeddings": True},
    "ZeRO-1, accumulation": {"stage": 1, "accumulation": 2},
    "ZeRO-2, accumulation": {"stage": 2, "accumulation": 2},
    "ZeRO-3, accumulation": {"stage": 3, "accumulation": 2},
}
# DeepSpeed's own ZeRO-3 has the update added to the layer's output, another rounding, and a sign that flips for it is
# no rounding any more: against its engine the update has none. With signs the lighter engines are compared.
WITHOUT_SIGNS = {"magnitude_activation": "identity", "direction_activation": "identity"}


def make_model(checkpointing: bool = False, embeddings: bool = False, signs: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": BLOCKS, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes))
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    activations = {} if signs else WITHOUT_SIGNS
    model = get_peft_model(base, DualLoraConfig(r_magnitude=3, r_direction=3, init_std=0.2, **activations))
    if embeddings:  # the first block's input then has a gradient anyway
        model.get_input_embeddings().weight.requires_grad_(True)
    return model.train()


def train(light: bool, stage: int, accumulation: int = 1, **kind: bool) -> dict[str, Any]:
    """Train four clipped steps; parts are fetched, freed and summed as those of a large model are."""
    import deepspeed

    from dual_lora.distributed.deepspeed_engine import announce_factors, fetch_whole_blocks, lighten

    model = make_model(**kind)
    largest = fetch_whole_blocks(model) if light and stage == 3 else 0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    zero = {"stage": stage, "reduce_bucket_size": 100, "stage3_param_persistence_threshold": 0}
    zero |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": largest or 2000}
    settings = {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": CLIP, "zero_optimization": zero}
    settings |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    settings |= {"gradient_accumulation_steps": accumulation}
    groups = [{"params": trained[::2]}, {"params": trained[1::2], "lr": 5e-3}]  # as LoRA+ has
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, model_parameters=trained, config=settings)
    if light:
        lighten(engine, 2, stage)
    elif stage == 3:
        announce_factors(model)
    draw = torch.Generator().manual_seed(int(os.environ["RANK"]))
    losses, norms = [], []
    for _ in range(4 * accumulation):
        tokens = torch.randint(2, 64, (2, 12), generator=draw)
        loss = engine(input_ids=tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        norms.append(float(engine.get_global_grad_norm() or 0.0))
    block = model.get_submodule("base_model.model.model.layers.0")
    hooked = sum(hasattr(module, "ds_id") for module in block.modules())
    whole = sum(parameter.numel() == getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)
    frozen = [parameter for parameter in block.parameters() if not parameter.requires_grad]
    return {
        "losses": losses,
        "norms": norms[accumulation - 1 :: accumulation],
        "hooked": hooked,
        "largest": largest,
        "trained that stay": [whole, len(trained)],
        "frozen elements that stay": sum(parameter.numel() for parameter in frozen),
    }


@functools.cache
def trained() -> dict[str, dict[str, Any]]:
    """Train all cases in one start of the two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, folder],
            capture_output=True,
            text=True,
            timeout=420,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads((Path(folder) / "trained.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_lighter_engine_trains_as_deepspeeds_own(name):
    own, light = trained()[f"{name}, own"], trained()[f"{name}, light"]
    assert light["losses"] == pytest.approx(own["losses"], rel=1e-6)
    assert light["norms"] == pytest.approx(own["norms"], rel=1e-5)  # squares are summed in another order
    assert min(light["norms"]) > CLIP, "nothing was clipped"
    assert light["losses"][-1] != pytest.approx(light["losses"][0], rel=1e-3), "nothing was learned"

    assert light["hooked"] == (1 if "ZeRO-3" in name else 0), "ZeRO-3 hooks a block and nothing in it"
    whole, parameters = light["trained that stay"]
    assert whole == parameters, "what is trained stays fetched between steps"
    if "ZeRO-3" in name:
        assert own["hooked"] > 20
        assert own["trained that stay"][0] == 0
        block = make_model().get_submodule("base_model.model.model.layers.0")
        assert light["largest"] == sum(parameter.numel() for parameter in block.parameters())
        assert light["frozen elements that stay"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [["ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-3, checkpointing"], [name for name in CASES if "accumulation" in name]],
    ids=str,
)
def test_all_stages_train_alike_to_the_last_bit(names):
    runs = [trained()[f"{name}, signs"] for name in names]
    for run in runs[1:]:
        assert (run["losses"], run["norms"]) == (runs[0]["losses"], runs[0]["norms"])


def main() -> None:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled for a minute otherwise
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    found = {}
    for name, case in CASES.items():
        for kind in ("own", "light", "signs"):
            found[f"{name}, {kind}"] = train(kind != "own", signs=kind == "signs", **case)
    if int(os.environ["RANK"]) == 0:
        (Path(sys.argv[1]) / "trained.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
