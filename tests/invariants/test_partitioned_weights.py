"""Weights are read into shards in the dtype that the run asks for, and nothing else changes its dtype."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from tests import ROOT

SHARDS = """
import collections, contextlib, json, sys
from pathlib import Path
import torch, transformers
from dual_lora import methods, models
from dual_lora.distributed import processes
from dual_lora.config.schedule import plan_batches
from dual_lora.distributed import deepspeed
from dual_lora.tasks.base import Head
from tests.small_cells import config
processes.join("cpu")
words = ["launch=deepspeed", "launch.num_gpus=1", "launch.zero_stage=3", f"model.path={sys.argv[1]}"]
cell, head = config(Path("results"), *words), Head("causal_lm")
deepspeed.compile_nothing(cell)
whole = models.load(cell.model, head, dtype=sys.argv[2], seed=0).model
transformers.modeling_utils.prevent_arange_dtype_change = contextlib.nullcontext  # new in 5.23
sharded = deepspeed.partition_while_loading(cell, plan_batches(cell), sys.argv[2])
model = models.load(cell.model, head, dtype=sys.argv[2], seed=0).model
buffers = dict(whole.named_buffers())
assert "model.rotary_emb.inv_freq" in buffers
for name, buffer in model.named_buffers():
    assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), (name, buffer)
model = methods.apply(model, cell.method, model_config=cell.model, head=head, seed=0)
dtypes = collections.defaultdict(set)
for parameter in model.parameters():
    kind = "factors" if parameter.requires_grad else "shards" if hasattr(parameter, "ds_id") else "whole"
    dtypes[kind].add(str(getattr(parameter, "ds_tensor", parameter).dtype))
print(json.dumps({kind: sorted(found) for kind, found in dtypes.items()}))
"""


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_weights_are_partitioned_in_their_own_dtype(dtype, checkpoint):
    """DeepSpeed makes shards in the dtype of its precision mode, which is off in training: 70B would take 280 GB.

    Buffers are not partitioned and have the dtype and the values they have without DeepSpeed: rotary frequencies did
    not.
    """
    group = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    group |= {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", SHARDS, str(checkpoint), dtype],
        env={**os.environ, "OMP_NUM_THREADS": "1", **group},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"factors": ["torch.float32"], "shards": [f"torch.{dtype}"]}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
