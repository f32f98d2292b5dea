"""Finding the full fine-tuning that an update is compared with."""

from __future__ import annotations

from pathlib import Path

from dual_lora import records
from dual_lora.config import RunConfig


def full_fine_tuning(config: RunConfig, dtype: str) -> Path | None:
    """Return the weights of the finished full fine-tuning of the same model, task, protocol, profile and seed.

    For a full fine-tuning itself: of another seed. How far the two agree is what a comparison can reach at most.
    None if there is no such record, or its weights are not on this machine. Of several, the one with the lowest
    validation loss (they differ in their learning rate).
    """
    found: list[tuple[float, Path]] = []
    held, _ = records.read_folder(Path(config.results) / "records")
    for known in held:
        if known["status"] != "finished":
            continue
        its = known["identity"]
        same = (
            its["method"]["trains"] == "everything"
            and its["model"]["name"] == config.model.name
            and its["task"]["name"] == config.task.name
            and its["protocol"]["name"] == config.protocol.name
            and its["profile"]["name"] == config.profile.name
            and (its["seed"] == config.seed) == (config.method.trains == "adapter")
            and its["dtype"] == dtype
        )
        weights = records.run_folder(config.results, its["run_id"]) / "last.safetensors"
        if same and weights.exists():
            losses = known["curves"].get("validation_loss") or [[0, float("inf")]]
            found.append((losses[-1][1], weights))
    return min(found)[1] if found else None
