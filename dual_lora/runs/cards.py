"""GPUs that a plan can be for: the one of this machine, or one that is named (`plan=h200`)."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass

GIB = 2**30
# Of a card's memory: the CUDA context with its kernels, and what the allocator keeps in blocks too small to use
# (1.03 to 1.06 of what it hands out: results/benchmarks/graphs.json).
_CONTEXT, _SPLIT = 0.6 * GIB, 1.06


@dataclass(frozen=True)
class Card:
    """A GPU: its memory in bytes, and dense products in bfloat16, TFLOP/s, by its data sheet (None: not known)."""

    name: str
    memory: float
    tflops: float | None

    def room(self) -> float:
        """Return the bytes that tensors can take."""
        return (self.memory - _CONTEXT) / _SPLIT


CARDS = {
    "a100_40": Card("NVIDIA A100 40GB", 39.4 * GIB, 312),
    "a100": Card("NVIDIA A100 80GB", 79.2 * GIB, 312),
    "l40s": Card("NVIDIA L40S", 44.4 * GIB, 362),
    "h100": Card("NVIDIA H100 80GB HBM3", 79.2 * GIB, 989),
    "h200": Card("NVIDIA H200", 139.8 * GIB, 989),
    "b200": Card("NVIDIA B200", 178.4 * GIB, 2250),
}
MEASURED = CARDS["h200"]  # that of the benchmarks


def planned_card(asked: bool | str) -> tuple[Card, bool]:
    """Return the card that `plan` names, else this machine's, else that of the benchmarks; and whether it is here."""
    if isinstance(asked, str):
        return CARDS[asked], False
    found = _here()
    return (MEASURED, False) if found is None else (found, True)


@functools.cache
def _here() -> Card | None:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
        name, _, mebibytes = told.splitlines()[0].rpartition(",")
        memory = float(mebibytes) * 2**20
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    known = [card for card in CARDS.values() if card.name.split()[1] in name]
    return Card(name.strip(), memory, known[0].tflops if known else None)
