"""The typed settings of a launcher, with their defaults; the files of `configs/launch/` change a few."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from dual_lora.config.bounds import Count, Positive


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LaunchConfig:
    """Where and how the run's processes start. Never part of the run's identity."""

    name: Literal["local", "torchrun", "fsdp", "deepspeed", "slurm"]
    engine: Literal["single", "torchrun", "fsdp", "deepspeed"] = "single"  # one process, DDP, torch's FSDP2, or ZeRO
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_gpus: Positive = 1  # processes per node, one on each GPU
    nodes: Positive = 1
    parallel: Positive = 1  # runs of a sweep at a time on this machine
    per_device_batch: Positive | None = None  # None: the largest divisor of the global batch that is at most 16
    eval_batch: Positive | None = None
    zero_stage: Literal[0, 1, 2, 3] = 0  # 1: optimizer, 2: and gradients, 3: and weights are split over the processes
    offload: bool = False  # ZeRO: optimizer state (stage 3: weights too) is in host memory
    gradient_checkpointing: bool = False
    graphs: Literal["auto", "on", "off"] = "auto"  # training steps as CUDA graphs; on: stop if one cannot be recorded
    dataloader_workers: Count = 0
    save_every_steps: Positive | None = None  # checkpoints; None: every two minutes, and never 2 % of the time
    keep_checkpoints: Positive = 2
    # Only launch=slurm reads the rest.
    gpus_per_node: Positive | None = None  # another name for num_gpus
    time_limit_minutes: Positive = 24 * 60
    signal_seconds: Count = 300  # before the time limit: finish the step, write a checkpoint, requeue
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_task: Positive | None = None  # None: 8 for each GPU
    memory_gb: Positive | None = None
    sbatch: dict[str, Any] = dataclasses.field(default_factory=dict)  # further #SBATCH options: {exclude: "node7"}
    setup: tuple[str, ...] = ()  # shell lines before the run: module load cuda
    container: str | None = None  # a prefix of the command: apptainer exec --nv image.sif

    @property
    def processes_per_node(self) -> int:
        return self.num_gpus if self.gpus_per_node is None else self.gpus_per_node

    @property
    def world_size(self) -> int:
        """Processes of one run, over all nodes."""
        return self.processes_per_node * self.nodes

    @property
    def shards_weights(self) -> bool:
        """Whether torch's `fully_shard` splits the weights; one process has nothing to split."""
        return self.engine == "fsdp" and self.world_size > 1
