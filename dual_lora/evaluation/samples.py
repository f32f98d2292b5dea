"""A few generations: kept in the record, and before and after training side by side on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dual_lora.evaluation.prediction_lines import read_values
from dual_lora.tasks import splits
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


def side_by_side(prepared: list[Any]) -> list[tuple[str, str, str]]:
    """Return `profile.samples` test inputs, each with the base model's and the trained model's reply.

    Empty unless the last run's profile asks for it and both runs left predictions.
    """
    last = prepared[-1]
    count = last.config.profile.samples
    base = next((item for item in prepared if item.config.method.trains == "nothing"), None)
    if not count or base is None or base is last:
        return []
    before = read_values(base.folder / "predictions" / "base.test.generate.jsonl")
    after = read_values(last.folder / "predictions" / "last.test.generate.jsonl")
    if not before or not after:
        return []
    items = splits.select(last.task, last.config).test
    places = range(0, len(items), max(1, len(items) // count))[:count]
    prompts = [last.task.render(items[place], training=False).prompt for place in places]
    return [(prompt, before.get(i, ""), after.get(i, "")) for prompt, i in zip(prompts, places, strict=True)]
