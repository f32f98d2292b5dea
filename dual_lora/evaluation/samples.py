"""A few generations that are kept in the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dual_lora.evaluation.prediction_lines import read_values
from dual_lora.tasks.base import Example, Task

KEPT = 5


def for_record(task: Task, items: Sequence[Example], predictions: Path, checkpoint: str) -> list[dict[str, str]]:
    """Return input, reply and first reference of five test items: the same ones for every run on the same items.

    Empty for tasks with short answers, whose texts say little, and if nothing was generated.
    """
    replies = read_values(predictions / f"{checkpoint}.test.generate.jsonl")
    if not task.free_text or not replies:
        return []
    places = [number * len(items) // KEPT for number in range(min(KEPT, len(items)))]
    return [
        {
            "input": task.render(items[place], training=False).prompt.strip(),
            "reply": str(task.read(replies.get(place, ""), items[place]) or ""),
            "reference": items[place].references[0],
        }
        for place in dict.fromkeys(places)
    ]
