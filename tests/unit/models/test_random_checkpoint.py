"""A checkpoint of random weights is whole, loads as any other, and is not written over anything."""

from __future__ import annotations

import pytest
import torch

from dual_lora import models
from dual_lora.commands import main
from dual_lora.config.compose import compose
from dual_lora.tasks.base import Head

# LLaMA-7B's YAML at a size that a test can write; one whose YAML says `source: random` is made another way.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 3, "num_heads": 4, "num_key_value_heads": 2}
LLAMA = ["model=llama", *(f"model.dimensions.{name}={size}" for name, size in SIZES.items())]
LLAMA += ["model.dimensions.vocab_size=512"]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command that writes nothing says."""
    assert main(["random-checkpoint", *words]) == 2
    return capsys.readouterr().err


def load(folder, *words):
    config = compose([f"model.path={folder}", "task=commonsense", "method=none", *words])[0].model
    return models.load(config, Head("causal_lm"), dtype="bfloat16", seed=0).model, config.dimensions


def test_it_loads_with_the_dimensions_asked_for(tmp_path, capsys):
    assert main(["random-checkpoint", *LLAMA, f"out={tmp_path / 'made'}", "workers=1"]) == 0
    net, dimensions = load(tmp_path / "made", *LLAMA)
    weights = net.state_dict()
    assert len(net.model.layers) == dimensions.num_layers == 3
    assert {file.name for file in (tmp_path / "made").glob("model-layer-*")} == {
        f"model-layer-{layer}.safetensors" for layer in range(3)
    }
    for name, tensor in weights.items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            assert 0.8 * 0.02 < float(tensor.float().std()) < 1.2 * 0.02, name
    first, second = (weights[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1))
    assert not torch.equal(first, second)
    assert "exists" in refusal(capsys, *LLAMA, f"out={tmp_path / 'made'}")


@pytest.mark.slow
def test_weights_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        assert main(["random-checkpoint", *LLAMA, f"out={tmp_path / str(workers)}", f"workers={workers}"]) == 0
    one, two = (load(tmp_path / str(workers), *LLAMA)[0].state_dict() for workers in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_family_is_refused(tmp_path, capsys):
    assert "only llama" in refusal(capsys, "model=gpt2", f"out={tmp_path / 'made'}")
    assert not list(tmp_path.iterdir())
