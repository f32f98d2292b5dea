"""Adapters saved by version 0.1.0 (commit 74d2b4d, PEFT 0.21) load and compute what they did.

Their files name import paths, the base class of the split GPT-2 (`auto_mapping`), and factors as they were called then:
`dual_lora_A`. `expected.json` has logits that the code of then computed.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import dual_lora
from dual_lora import methods, models, tasks
from dual_lora.config.compose import compose
from dual_lora.runs import warm_start
from tests.unit.tuner.tiny_adapted_model import logits, make_base, make_config

SAVED = Path(__file__).parent / "saved_by_0_1_0"


@pytest.mark.parametrize(("model", "task"), [("tiny_gpt2", "e2e"), ("tiny_llama", "commonsense")])
def test_an_adapter_of_the_first_version_computes_what_it_did(model: str, task: str) -> None:
    config = compose([f"model={model}", f"task={task}", "method=none", "data.source=sample"])[0]
    base = models.load(config.model, tasks.load(config).head, dtype="float32", seed=0).model
    expected = json.loads((SAVED / model / "expected.json").read_text())
    adapted = PeftModel.from_pretrained(base, str(SAVED / model)).eval()
    assert isinstance(adapted.peft_config["default"], dual_lora.DualLoraConfig)
    with torch.no_grad():
        logits = adapted(input_ids=torch.tensor(expected["input_ids"])).logits[0, -1, :6]
        with adapted.disable_adapter():
            plain = adapted(input_ids=torch.tensor(expected["input_ids"])).logits[0, -1, :6]
    torch.testing.assert_close(logits, torch.tensor(expected["last_logits"]), rtol=1e-5, atol=1e-6)
    assert (logits - plain).abs().max() > 1e-3  # the adapter does something


def start_subtracted() -> dual_lora.DualLoraConfig:
    settings = {"r_magnitude": 1, "r_direction": 1, "subtract_start": True, "bias": "dual_lora_only"}
    targets = {"layers_to_transform": [1], "target_modules": ["c_attn", "c_fc"], "modules_to_save": ["ln_f"]}
    return make_config("gpt2", **settings, **targets)


def last_logits(model: torch.nn.Module) -> torch.Tensor:
    return logits(model.eval())[0, -1, :6]


def test_start_factors_biases_and_whole_modules_of_the_first_version(tmp_path: Path) -> None:
    folder = SAVED / "start_subtracted"
    expected = torch.tensor(json.loads((folder / "expected.json").read_text())["last_logits"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        loaded = PeftModel.from_pretrained(make_base("gpt2"), folder)
    torch.testing.assert_close(last_logits(loaded), expected, rtol=1e-5, atol=1e-6)
    loaded.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if "lora_" in name]
    torch.testing.assert_close(last_logits(PeftModel.from_pretrained(make_base("gpt2"), tmp_path)), expected)


def test_transformers_own_loader_reports_every_factor_of_the_first_version_as_missing() -> None:
    """It renames nothing, and a report of missing keys is all that it says: docs/clients.md names the way round."""
    model = make_base("gpt2")
    found = model.load_adapter(str(SAVED / "start_subtracted"))
    factors = {name for name, _ in model.named_parameters() if "dual_lowrank_" in name}
    assert len(factors) == 2 * 8
    assert found.missing_keys == factors


def test_the_weights_in_a_run_folder_of_the_first_version() -> None:
    folder = SAVED / "start_subtracted"
    expected = torch.tensor(json.loads((folder / "expected.json").read_text())["last_logits"])
    state = load_file(folder / "last.safetensors")
    assert any(name.endswith(".dual_lora_A.default") for name in state)
    for load in (
        lambda model: methods.load_trainable_state(model, state),
        lambda model: warm_start.load(model, warm_start.WarmStart(folder / "last.safetensors", "")),
    ):
        model = get_peft_model(make_base("gpt2"), start_subtracted())  # its start is drawn from the seed, as a run's is
        load(model)
        torch.testing.assert_close(last_logits(model), expected, rtol=1e-5, atol=1e-6)


def test_the_import_paths_that_files_name_are_still_there() -> None:
    mapping = json.loads((SAVED / "tiny_gpt2" / "adapter_config.json").read_text())["auto_mapping"]
    assert hasattr(importlib.import_module(mapping["parent_library"]), mapping["base_model_class"])
    # submitit pickles the job by this path; a job that is queued while the suite is updated must still start.
    assert importlib.import_module("dual_lora.launch.slurm").SlurmCell.__name__ == "SlurmCell"
