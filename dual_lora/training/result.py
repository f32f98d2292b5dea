"""What a training leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class TrainingResult:
    """What training leaves behind for evaluation and the record."""

    steps: int
    curves: dict[str, list[list[float]]]
    seconds: float
    tokens: int
    useful_tokens: int
    flops: float
    selected: dict[str, Path] = field(default_factory=dict)  # checkpoint name → trainable weights (safetensors)
    resumed_from: list[int] = field(default_factory=list)
    graphs: dict[str, Any] = field(default_factory=dict)  # what `GraphedSteps.report` says, of this process
