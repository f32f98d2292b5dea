"""The environment: variables by which other tools would change a run are left out; where our caches are."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from dual_lora.config.errors import ModelError

# accelerate reads these wherever a Trainer is made: precision, compilation, accumulation, sharding.
_SETTINGS = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "XLA_USE_BF16", "XLA_DOWNCAST_BF16")
# By these PyTorch and cuBLAS compute float32 products with 10 bits of mantissa; NVIDIA's containers set the first.
_ROUNDING = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE")
# Other bits of grouped heads under a mask (transformers); checkpoints that run code as they are read (PyTorch), which
# `runs/lifecycle.py` forbids by another variable: with both no checkpoint can be read.
_READING = ("TRANSFORMERS_SDPA_FORCE_GQA", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
# Those by which MPI, PMI and SLURM say what process of how many this is.
_OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_", "MPI_LOCALRANKID")
_LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
# Those of torchrun, which starts the groups of this suite; and of everything that starts groups the way it does.
_TORCHRUN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_"),
)


def ignore_renamed_settings() -> None:
    """Keep transformers' warnings of what it renamed inside itself off the screen: nobody here can change that."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _prefixes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name.endswith("_"))


def leave_out_other_tools(environment: MutableMapping[str, str], *, in_group: bool) -> list[str]:
    """Remove these variables and return their names.

    in_group: this process was started by a parent of this suite as one of a group, whose variables stay.
    """
    foreign = (*_SETTINGS, *_ROUNDING, *_READING, *_OTHER_LAUNCHERS, *(() if in_group else _TORCHRUN))
    found = [name for name in environment if name in foreign or name.startswith(_prefixes(foreign))]
    for name in found:
        del environment[name]
    return sorted(found)


def launcher_around(environment: Mapping[str, str]) -> str | None:
    """Return the program that started this process as one of several; variables alone may be left over in a shell."""
    if "LOCAL_RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return None
    import psutil

    try:
        parent = psutil.Process().parent()
        words = parent.cmdline()[:4] if parent else []
    except psutil.Error:
        return None
    if any(word.startswith("torch.distributed.") for word in words):  # python -m torch.distributed.run
        return "torchrun"
    started = {Path(word).name.partition(".")[0] for word in words}
    return next((name for name in _LAUNCHERS if name in started), None)


def cache_folder() -> Path:
    """Return the folder of converted weights, token ids and hashes: $DUAL_LORA_CACHE, else ~/.cache/dual_lora.

    Raises `ModelError` if it cannot be written.
    """
    given = os.environ.get("DUAL_LORA_CACHE")
    try:
        folder = Path(given) if given else Path.home() / ".cache" / "dual_lora"
    except RuntimeError:
        raise ModelError(
            "there is no home folder for the cache (HOME is unset and the user has none); set DUAL_LORA_CACHE to a "
            "folder that can be written"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ModelError(
            f"the cache folder {folder} cannot be written ({error.strerror}); set DUAL_LORA_CACHE to a writable one"
        ) from None
    return folder
