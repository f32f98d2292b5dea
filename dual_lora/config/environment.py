"""Variables by which other tools would change a run: they are left out of this process and of those that it starts."""

from __future__ import annotations

from collections.abc import MutableMapping

# accelerate reads these wherever a Trainer is made: precision, compilation, accumulation, sharding.
_SETTINGS = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "XLA_USE_BF16", "XLA_DOWNCAST_BF16")
# Those by which MPI, PMI and SLURM say what process of how many this is.
_OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_", "MPI_LOCALRANKID")
# Those of torchrun, which starts the groups of this suite; and of everything that starts groups the way it does.
_TORCHRUN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_"),
)


def _prefixes(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name.endswith("_"))


def leave_out_other_tools(environment: MutableMapping[str, str], *, in_group: bool) -> list[str]:
    """Remove these variables and return their names.

    in_group: this process was started by a parent of this suite as one of a group, whose variables stay.
    """
    foreign = (*_SETTINGS, *_OTHER_LAUNCHERS, *(() if in_group else _TORCHRUN))
    found = [name for name in environment if name in foreign or name.startswith(_prefixes(foreign))]
    for name in found:
        del environment[name]
    return sorted(found)
