"""Adapters saved by version 0.1.0 (commit 74d2b4d, PEFT 0.21) load and compute what they did.

Their files name import paths: the base class of the split GPT-2 (`auto_mapping`), and the names of every factor.
`expected.json` has logits that the code of then computed.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import dual_lora
from dual_lora import models, tasks
from dual_lora.config.compose import compose

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


def test_the_import_paths_that_files_name_are_still_there() -> None:
    mapping = json.loads((SAVED / "tiny_gpt2" / "adapter_config.json").read_text())["auto_mapping"]
    assert hasattr(importlib.import_module(mapping["parent_library"]), mapping["base_model_class"])
    # submitit pickles the job by this path; a job that is queued while the suite is updated must still start.
    assert importlib.import_module("dual_lora.launch.slurm").SlurmCell.__name__ == "SlurmCell"
