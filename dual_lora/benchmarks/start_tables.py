"""What `results/benchmarks/start.json`, `runs.json` and `passes.json` say, as text: of docs/speed.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dual_lora.report.grid import grid

# Values of launch.graphs, and of code that had none.
_SWITCH = {"auto": "on", "off": "off", "grows": "off, a cache that grows", "before": "none yet"}


def start_section(found: Mapping[str, Any]) -> str:
    """Return how long a run takes to its first step, against another checkout where one was measured."""
    if not found:
        return "Not measured."
    environment = found["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "peft"))
    made = f"Made by `{found['command']}`; medians of {found['repeated']}. {found.get('note', '')}".rstrip()
    headings = ["run", "before, CPU s", "first, CPU s", "later, CPU s", "before, s", "first, s", "later, s"]
    rows = []
    for row in found["rows"]:
        cells = [
            f"{row[way][kind]:.1f}" if way in row else "–"
            for kind in ("cpu_seconds", "seconds")
            for way in ("against", "first", "later")
        ]
        rows.append([row["run"], *cells])
    return f"{environment['card']}, {versions}. {made}\n\n{grid('lrrrrrr', headings, rows)}"


def runs_section(found: Mapping[str, Any]) -> str:
    """Return the runs per minute of a GPU, by how many at a time."""
    if not found:
        return "Not measured."
    headings = ["at a time", "graphs", "runs / minute", "seconds of training", "of evaluation"]
    rows = []
    for row in found["rows"]:
        measured = [f"{row[name]:.1f}" for name in ("runs_per_minute", "train_seconds", "eval_seconds")]
        rows.append([row["parallel"], _SWITCH[row["graphs"]], *measured])
    table = f"{_made(found)}\n\n{grid('rlrrr', headings, rows)}"
    return f"{table}\n\n{_against(found['against'])}" if "against" in found else table


def _against(found: Mapping[str, Any]) -> str:
    """Return what the same sweep took by the code before graphs."""
    before, now = (
        f"{way['seconds']:.0f} s for {way['finished']} runs ({60 * way['finished'] / way['seconds']:.1f} a minute)"
        for way in (found["before"], found["now"])
    )
    return f"{found['note']} Before {before}, now {now}."


def passes_section(found: Mapping[str, Any]) -> str:
    """Return the seconds of an evaluation's passes, by batch size, with graphs and without."""
    if not found:
        return "Not measured."
    rows = []
    for row in found["rows"]:
        what = [row["part"], f"{row['items']:,}", f"{row['batch']:,}", _SWITCH[row["graphs"]]]
        replayed = f"{row['replays']} of {row['replays'] + row['eager']}" if "eager" in row else str(row["replays"])
        rows.append([*what, f"{row['seconds']:.1f}", replayed, f"{row['reserved_GiB']:.1f}"])
    headings = ["passes", "items", "batch", "graphs", "s", "replayed", "memory, GiB"]
    table = f"{_made(found)}\n\n{grid('lrrlrrr', headings, rows)}"
    return f"{table}\n\n{_attention(found['attention'])}" if "attention" in found else table


def _attention(found: Mapping[str, Any]) -> str:
    """Return the time of attention by two kernels, and how many calls gave other bits than the first."""
    rows = []
    for row in found["rows"]:
        ours, other = row["efficient"], row["cudnn"]
        apart = f"{other['apart']:.4f}" if "apart" in other else "–"
        differ = [f"{one['calls_that_differ']} of {found['of']}" for one in (other, ours)]
        rows.append([row["case"], f"{other['us']:.0f}", differ[0], apart, f"{ours['us']:.0f}", differ[1]])
    headings = ["attention", "cuDNN, µs", "differ", "by up to", "memory-efficient, µs", "differ"]
    return f"{found['note']}\n\n{grid('lrrrrr', headings, rows)}"


def _made(found: Mapping[str, Any]) -> str:
    return f"{found['environment']['card']}. Made by `{found['command']}`. {found.get('note', '')}".rstrip()
