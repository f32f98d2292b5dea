"""What `results/benchmarks/start.json`, `runs.json` and `passes.json` say, as text: of docs/speed.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def start_section(found: Mapping[str, Any]) -> str:
    """Return how long a run takes to its first step, against another checkout where one was measured."""
    if not found:
        return "Not measured."
    environment = found["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "peft"))
    lines = [
        f"{environment['card']}, {versions}. Made by `{found['command']}`; medians of {found['repeated']}. "
        f"{found.get('note', '')}".rstrip(),
        "",
        "| run | before, CPU s | first, CPU s | later, CPU s | before, s | first, s | later, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        cells = [
            f"{row[way][kind]:.1f}" if way in row else "–"
            for kind in ("cpu_seconds", "seconds")
            for way in ("against", "first", "later")
        ]
        lines.append(f"| {row['run']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def runs_section(found: Mapping[str, Any]) -> str:
    """Return the runs per minute of a GPU, by how many at a time."""
    if not found:
        return "Not measured."
    lines = [
        f"{found['environment']['card']}. Made by `{found['command']}`.",
        "",
        "| at a time | graphs | runs / minute | seconds of training | of evaluation |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['parallel']} | {'on' if row['graphs'] == 'auto' else 'off'} | {row['runs_per_minute']:.1f} "
        f"| {row['train_seconds']:.1f} | {row['eval_seconds']:.1f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def passes_section(found: Mapping[str, Any]) -> str:
    """Return the seconds of an evaluation's passes, by batch size, with graphs and without."""
    if not found:
        return "Not measured."
    lines = [
        f"{found['environment']['card']}. Made by `{found['command']}`.",
        "",
        "| passes | items | batch | graphs | s | replayed | memory, GiB |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['part']} | {row['items']:,} | {row['batch']:,} | {'on' if row['graphs'] == 'auto' else 'off'} "
        f"| {row['seconds']:.1f} | {row['replays']} of {row['replays'] + row['eager']} | {row['reserved_GiB']:.1f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)
