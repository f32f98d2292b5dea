"""What whole runs are made of here."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from dual_lora import models
from dual_lora.tasks.base import Head
from tests.same_answer import run
from tests.small_cells import config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA as files, so that ZeRO-3 partitions it while it loads."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoint")
    loaded = models.load(config(folder).model, Head("causal_lm"), dtype="float32", seed=0)
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """One process, no accumulation."""
    results = tmp_path_factory.mktemp("alone")
    return run(results, checkpoint), results
