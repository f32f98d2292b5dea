"""Weights are read into shards in the dtype that the run asks for, and nothing else changes its dtype."""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import transformers

from dual_lora import methods, models
from dual_lora.benchmarks import timing
from dual_lora.config.schedule import plan_batches
from dual_lora.distributed import deepspeed, processes
from dual_lora.tasks.base import Head
from tests.small_cells import config


def write_dtypes(checkpoint: Path, dtype: str, file: Path) -> None:
    """In a process of its own: partition a model while it loads, and write the dtypes of what it consists of."""
    timing.describe_group(0, 1, timing.free_port())
    processes.join("cpu")
    words = ["launch=deepspeed", "launch.num_gpus=1", "launch.zero_stage=3", f"model.path={checkpoint}"]
    cell, head = config(file.parent, *words), Head("causal_lm")
    deepspeed.compile_nothing(cell)
    whole = models.load(cell.model, head, dtype=dtype, seed=0).model
    transformers.modeling_utils.prevent_arange_dtype_change = contextlib.nullcontext  # new in 5.23
    sharded = deepspeed.partition_while_loading(cell, plan_batches(cell), dtype)
    model = models.load(cell.model, head, dtype=dtype, seed=0).model
    assert sharded is not None  # partitions as long as it is held
    buffers = dict(whole.named_buffers())
    assert "model.rotary_emb.inv_freq" in buffers
    for name, buffer in model.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name
    model = methods.apply(model, cell.method, model_config=cell.model, head=head, seed=0)
    dtypes = collections.defaultdict(set)
    for parameter in model.parameters():
        kind = "factors" if parameter.requires_grad else "shards" if hasattr(parameter, "ds_id") else "whole"
        dtypes[kind].add(str(getattr(parameter, "ds_tensor", parameter).dtype))
    file.write_text(json.dumps({kind: sorted(found) for kind, found in dtypes.items()}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_are_partitioned_in_their_own_dtype(dtype, checkpoint, tmp_path):
    """DeepSpeed makes shards in the dtype of its precision mode, which is off in training: 70B would take 280 GB.

    Buffers are not partitioned and have the dtype and the values they have without DeepSpeed: rotary frequencies did
    not.
    """
    given = checkpoint, dtype, tmp_path / "dtypes.json"
    process = multiprocessing.get_context("forkserver").Process(target=write_dtypes, args=given)
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert json.loads(given[2].read_text()) == {"factors": ["torch.float32"], "shards": [f"torch.{dtype}"]}
