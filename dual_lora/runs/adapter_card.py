"""What the README.md of a run's adapter says of the run: id, scores, recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- dual-lora: run -->", "<!-- /dual-lora: run -->"


def write(adapter: Path, record: dict[str, Any]) -> None:
    """Write the part on the run that `record` is of into the adapter's README.md; what else is there stays."""
    card = adapter / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2].strip()
    parts = [before.rstrip(), f"{_BEGIN}\n{_run(record)}\n{_END}", after]
    card.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _run(record: dict[str, Any]) -> str:
    identity, headline = record["identity"], record["scores"]["headline"]
    recipe, origin = identity["recipe"], record["origin"]
    settings = ", ".join(f"{key} {value}" for key, value in identity["method"]["settings"].items() if value is not None)
    facts = {
        "run": f"`{identity['run_id']}`",
        "model": identity["model"]["name"],
        "task": identity["task"]["name"],
        "method": f"{identity['method']['name']} ({settings})",
        "protocol": identity["protocol"]["name"],
        "recipe": f"{recipe['name']}: learning rate {recipe['learning_rate']}, batch {recipe['global_batch']}",
        "seed": identity["seed"],
        "score": f"{headline['metric']} {headline['value']} (checkpoint {headline['checkpoint']})",
        "made by": f"`{origin['command']}`, commit {origin['commit'] or 'not known'}",
    }
    return "\n".join(
        ["## The run", "", "| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in facts.items())]
    )
