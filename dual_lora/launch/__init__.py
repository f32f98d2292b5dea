"""Starting runs: in this process, as workers, as groups of processes, as SLURM jobs. Workers read a file.

launch(cells)    what `python run.py` does with the composed cells
work(file)       what `python run.py --worker FILE` does: one process of one run
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import warnings
from typing import Any

from dual_lora.config import ConfigError, DataError, MethodConfig, RunConfig
from dual_lora.launch.show import show, title
from dual_lora.launch.worker import work
from dual_lora.records import redaction

logger = logging.getLogger(__name__)
BASE_ROW = MethodConfig(name="none", label="Base model", trains="nothing")
__all__ = ["launch", "title", "work"]


def launch(cells: list[RunConfig]) -> int:
    """Run every cell and print how they compare. Returns the exit code: 0 if all finished (SLURM: were submitted)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "transformers", "datasets", "deepspeed", "DeepSpeed", "absl", "submitit"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("DUAL_LORA_COMMAND", redaction.hide(" ".join(["python", "run.py", *sys.argv[1:]])))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Renamed settings inside transformers warn at every start; nothing a user of this suite could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    cells = _with_base_rows(cells)
    for cell in cells:
        check(cell)
    if cells[0].launch.name == "slurm":
        from dual_lora.launch import slurm

        return slurm.launch(cells)
    if cells[0].plan:
        describe(cells)
        return 0
    if cells[0].launch.engine == "single" and cells[0].launch.parallel > 1 and len(cells) > 1:
        from dual_lora.launch import forks

        forks.serve(cells)
    return _run_here(prepare(cells))


def _run_here(prepared: list[Any]) -> int:
    from dual_lora.launch import local
    from dual_lora.runs import lifecycle

    records = local.one_by_one(prepared) if _shares_process(prepared) else local.side_by_side(prepared)
    show(prepared, records)
    codes = [lifecycle.EXIT_CODES.get(record["status"], 1) if record else 1 for record in records]
    return max(codes, default=0)


def prepare(cells: list[RunConfig]) -> list[Any]:
    """Check and name every cell; equal ones become one. Raises `ConfigError`."""
    from dual_lora.runs.resolve import resolve

    try:
        prepared = list({item.run_id: item for item in (resolve(cell) for cell in cells)}.values())
    except DataError as error:
        raise ConfigError(str(error)) from None
    for item in prepared:
        logger.info("run %s: %s", item.run_id, title(item.config))
    return prepared


def describe(cells: list[RunConfig]) -> None:
    """Print what each cell would be."""
    from dual_lora.runs import plan
    from dual_lora.runs.resolve import resolve

    for cell in cells:
        print(plan.describe(resolve(cell, planned=True)))


def _with_base_rows(cells: list[RunConfig]) -> list[RunConfig]:
    """Put the untrained base row before each cell whose profile asks for it."""
    rows: list[RunConfig] = []
    for cell in cells:
        if cell.profile.base_row and cell.method.trains != "nothing":
            rows.append(dataclasses.replace(cell, method=BASE_ROW))
        rows.append(cell)
    return rows


def _shares_process(prepared: list[Any]) -> bool:
    """Small sweeps run in this process, where imports and downloads happen once."""
    first = prepared[0].config.launch
    return first.engine == "single" and (first.parallel == 1 or len(prepared) == 1)


# What looks at whole gradients while it trains (a PEFT config, an optimizer), and the ZeRO stage from which there are
# none: AdaLoRA reads `grad` after the step, GaLore projects the gradient of a whole matrix within it.
_WHOLE_GRADIENTS = {"peft.AdaLoraConfig": 0, "galore_adamw": 1}


def check(config: RunConfig) -> None:
    """Refuse launch settings that contradict each other. Raises `ConfigError`."""
    launch = config.launch
    if launch.num_gpus < 1 or launch.nodes < 1 or launch.processes_per_node < 1:
        raise ConfigError(
            f"launch.num_gpus={launch.num_gpus} launch.gpus_per_node={launch.gpus_per_node} "
            f"launch.nodes={launch.nodes}: each must be at least 1 (without GPUs: launch.device=cpu)"
        )
    if launch.engine == "single" and launch.world_size > 1:
        raise ConfigError(
            f"launch.engine=single is one process, and {launch.world_size} are asked for; use launch.engine=torchrun "
            "(the model fits one device) or launch.engine=deepspeed launch.zero_stage=2|3 (it does not)"
        )
    if launch.nodes > 1 and launch.name != "slurm":
        raise ConfigError(f"launch.nodes={launch.nodes}: several nodes are started by launch=slurm only")
    if launch.zero_stage and launch.engine != "deepspeed":
        raise ConfigError(f"launch.zero_stage={launch.zero_stage} needs launch.engine=deepspeed (or launch=deepspeed)")
    if launch.offload and launch.zero_stage == 0:
        raise ConfigError("launch.offload=true needs launch.zero_stage=1, 2 or 3")
    if launch.parallel < 1 or launch.keep_checkpoints < 1:
        raise ConfigError(
            f"launch.parallel={launch.parallel}, launch.keep_checkpoints={launch.keep_checkpoints}: at least 1 each"
        )
    for what in (config.method.config_class, config.method.optimizer.name):
        if launch.engine == "deepspeed" and launch.zero_stage >= _WHOLE_GRADIENTS.get(what or "", 4):
            raise ConfigError(
                f"method={config.method.name} ({what}) reads whole gradients, which DeepSpeed at "
                f"launch.zero_stage={launch.zero_stage} does not leave in place; use launch=torchrun"
            )
