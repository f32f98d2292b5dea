"""What `results/benchmarks/export_lora.json` says, as text of docs/serving.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dual_lora.report.grid import grid

WAYS = ("without texts", "with texts")


def section(found: Mapping[str, Any]) -> str:
    """Return a table for each adapter that was measured."""
    return "\n\n".join(_table(entry) for entry in found.values()) or "Not measured."


def _table(entry: Mapping[str, Any]) -> str:
    scores = entry["scores"]
    metric = next(iter(scores["base"]))
    whole, base = scores["Dual LoRA"][metric], scores["base"][metric]
    ranks = sorted({int(name.split()[1].rstrip(",")) for name in scores if name.startswith("rank ")}, reverse=True)
    about = (
        f"**{entry['model']}, {entry['task']}**: {_name(metric)} on {entry['items']:,} {_items(metric)}. "
        f"Base {base:.4f}, Dual LoRA ({entry['ranks'][0]} + {entry['ranks'][1]}) {whole:.4f}."
    )
    rows = []
    for rank in ranks:
        cells = []
        for way in WAYS:
            value = scores[f"rank {rank}, {way}"][metric]
            cells += [f"{value:.4f}", f"{(value - base) / (whole - base):.1%}"]
        rows.append([rank, *cells])
    table = grid("rrrrr", ["LoRA of rank", "without texts", "gain kept", "with eight texts", "gain kept"], rows)
    made = entry["environment"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("torch", "transformers", "peft"))
    return f"{about}\n\n{table}\n\nRun `{entry['run']}`, {entry['dtype']}, {made['card']}, {versions}."


def _name(metric: str) -> str:
    return "loss per answer token, in nats," if metric == "loss" else metric.replace("_", " ")


def _items(metric: str) -> str:
    return "validation examples" if metric == "loss" else "test items"
