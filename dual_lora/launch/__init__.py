"""Starting runs: in this process, as workers, as groups of processes, as SLURM jobs. Workers read a file.

launch(configs)  what `python run.py` does with the composed configs
work(file)       what `python run.py --worker FILE` does: one process of one run
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from dual_lora import methods, records
from dual_lora.config import ConfigError, DataError, MethodConfig, RunConfig
from dual_lora.launch.show import show
from dual_lora.launch.titles import distinguish, title
from dual_lora.launch.worker import say_what_matters, work
from dual_lora.records import sweeps
from dual_lora.runs.garbage import uncollected

if TYPE_CHECKING:
    from dual_lora.runs.resolve import Resolved

logger = logging.getLogger(__name__)
# Before it numbers can be others: docs/launching.md. pyproject.toml has the range.
OLDEST_DEEPSPEED = "0.19.8"
BASE_ROW = MethodConfig(name="none", label="Base model", trains="nothing")
__all__ = ["launch", "title", "work"]


def launch(configs: list[RunConfig]) -> int:
    """Do every run and print how they compare. Returns the exit code: 0 if all finished (SLURM: were submitted)."""
    say_what_matters()
    os.environ.setdefault("DUAL_LORA_COMMAND", records.command_of_this_process())
    configs = _with_base_rows(configs)
    distinguish(configs)
    for config in configs:
        check(config)
    first = configs[0].launch
    alone = first.engine == "single" and (first.parallel == 1 or len(configs) == 1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if alone else "false")  # all cores to encode examples
    if first.name == "slurm":
        from dual_lora.launch import slurm

        return slurm.launch(configs)
    if configs[0].plan:
        describe(configs)
        return 0
    if first.engine == "single" and not alone:
        from dual_lora.launch import forks

        forks.serve(configs)
    with uncollected():
        from dual_lora.runs import lifecycle  # all that a run imports

        prepared = prepare(configs)
    gc.freeze()  # no model yet: whatever is collected later is of one run
    return _run_here(prepared)


def _run_here(prepared: list[Resolved]) -> int:
    from dual_lora.launch import local
    from dual_lora.runs import lifecycle

    named = announce(prepared)
    made = local.one_by_one(prepared) if _shares_process(prepared) else local.side_by_side(prepared)
    if named is not None and all(made):
        named.unlink(missing_ok=True)
    show(prepared, made)
    codes = [lifecycle.EXIT_CODES.get(record["status"], 1) if record else 1 for record in made]
    return max(codes, default=0)


def announce(prepared: list[Resolved], least: int = 2) -> Path | None:
    """Name the runs of a sweep for `status`, and return the file that does; None for fewer than `least`."""
    if len(prepared) < least:
        return None
    told = {item.run_id: (title(item.config), item.identity) for item in prepared}
    try:
        return sweeps.announce(prepared[0].config.results, told)
    except OSError as error:  # a run says what to do about a full disk
        logger.warning("status will not show what this sweep has not begun (%s)", error)
        return None


def prepare(configs: list[RunConfig]) -> list[Resolved]:
    """Check and name every run, and say once what is missing in its data; equal ones become one.

    Raises `ConfigError`.
    """
    prepared = list({item.run_id: item for item in _resolved(configs)}.values())
    for item in prepared:
        logger.info("run %s: %s", item.run_id, title(item.config))
    for task, note in dict.fromkeys((item.task.name, note) for item in prepared for note in item.task.notes):
        if not note.startswith("left out by task.metrics"):  # as was asked for
            logger.warning("note on %s: %s", task, note)
    return prepared


def describe(configs: list[RunConfig]) -> None:
    """Print what a run would be, or of several what those are that differ in the seed only, and all together."""
    from dual_lora.runs import plan

    runs = _resolved(configs, planned=True)
    if len(runs) == 1:
        print(plan.describe(runs[0]))
    else:
        print(plan.describe_sweep(runs, [title(config).rpartition(" seed=")[0] for config in configs]))


def _resolved(configs: list[RunConfig], *, planned: bool = False) -> list[Resolved]:
    from dual_lora.runs.resolve import resolve

    try:
        return [resolve(config, planned=planned) for config in configs]
    except DataError as error:
        raise ConfigError(str(error)) from None


def _with_base_rows(configs: list[RunConfig]) -> list[RunConfig]:
    """Put the untrained base before each run whose profile asks for it."""
    rows: list[RunConfig] = []
    for config in configs:
        if config.profile.base_row and config.method.trains != "nothing":
            rows.append(dataclasses.replace(config, method=BASE_ROW))
        rows.append(config)
    return rows


def _shares_process(prepared: list[Resolved]) -> bool:
    """Small sweeps run in this process, where imports and downloads happen once."""
    first = prepared[0].config.launch
    return first.engine == "single" and (first.parallel == 1 or len(prepared) == 1)


def check(config: RunConfig) -> None:
    """Refuse launch settings that contradict each other. Raises `ConfigError`."""
    launch = config.launch
    if config.tracking == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ConfigError("tracking=tensorboard needs a package that is missing: pip install tensorboard")
    if launch.num_gpus not in (1, launch.processes_per_node):
        raise ConfigError(
            f"launch.num_gpus={launch.num_gpus}, launch.gpus_per_node={launch.gpus_per_node}: two names of one number; "
            "give one"
        )
    if launch.engine == "single" and launch.world_size > 1:
        raise ConfigError(
            f"launch.engine=single is one process, but {launch.world_size} are requested; use launch.engine=torchrun "
            "(if the model fits one device) or launch.engine=fsdp (if it does not)"
        )
    if launch.nodes > 1 and launch.name != "slurm":
        raise ConfigError(f"launch.nodes={launch.nodes}: only launch=slurm starts several nodes")
    if launch.zero_stage and launch.engine != "deepspeed":
        raise ConfigError(f"launch.zero_stage={launch.zero_stage} needs launch.engine=deepspeed (or launch=deepspeed)")
    if launch.offload and launch.zero_stage == 0:
        raise ConfigError("launch.offload=true needs launch.zero_stage=1, 2 or 3")
    if launch.engine == "deepspeed":
        if Version(installed := version("deepspeed")) < Version(OLDEST_DEEPSPEED):
            raise ConfigError(
                f"launch.engine=deepspeed: DeepSpeed {installed} is installed, and before {OLDEST_DEEPSPEED} it can "
                f"compute other numbers than one process; pip install 'deepspeed>={OLDEST_DEEPSPEED},<0.20'"
            )
        methods.check_zero_stage(config.method, launch.zero_stage)
    if launch.engine == "fsdp":
        methods.check_sharded(config.method)
