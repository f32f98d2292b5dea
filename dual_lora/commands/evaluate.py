"""Score a saved PEFT adapter, trained here or elsewhere, or a base model without one.

    python run.py evaluate adapter=FOLDER model=llama2 task=commonsense protocol=paper
    python run.py evaluate model=smollm2 task=commonsense protocol=strict data.source=local data.dir=FOLDER

All settings but the options below are those of a run (model, task, protocol, profile, data.*, launch.device,
launch.eval_batch). The prompt has to be the one the adapter was trained with: protocol and task.target choose it. The
same command continues where it was stopped, also with another launch.eval_batch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dual_lora.commands.parser import Parser, one_of
from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.compose import compose_one
from dual_lora.methods import saved
from dual_lora.records import per_item


def options(parser: Parser) -> None:
    parser.take_settings()
    parser.add_argument("--adapter", type=Path, help="folder that save_pretrained wrote; without it: the base model")
    parser.add_argument("--out", type=Path, help="the scores' file; default: results/local/evaluations/ID.json")
    parser.add_argument(
        "--gate", type=one_of("on", "off"), default="on", help="off: do not check prompts, padding, mask and weights"
    )


def run(options: argparse.Namespace) -> int:
    """Return 0. Raises `ConfigError` for settings or an adapter that cannot be used, `GateError` for a failed check."""
    if any(word.startswith("method=") for word in options.settings):
        raise ConfigError("method= has no meaning here: the adapter's own config names its method; use adapter=FOLDER")
    if not options.settings:
        raise ConfigError("give at least model= and task=; see --help")
    config = compose_one(["method=none", *options.settings])
    if config.launch.engine != "single" or config.launch.world_size > 1:
        count = config.launch.world_size
        raise ConfigError(
            f"launch={config.launch.name} with {count} process(es) has no meaning here: an evaluation is one process; "
            "leave the launcher out"
        )
    adapter = None if options.adapter is None else (options.adapter, saved.adapter_hash(options.adapter))
    _evaluate(config, adapter, options)
    return 0


def _evaluate(config: RunConfig, adapter: tuple[Path, str] | None, options: argparse.Namespace) -> None:
    import torch

    from dual_lora import models, tasks
    from dual_lora.evaluation import build_pipeline, gate
    from dual_lora.report import escape, terminal
    from dual_lora.runs.resolve import resolve_device
    from dual_lora.tasks import splits

    device = resolve_device(config)
    dtype = models.resolve_dtype(config.model, device)
    models.check_available(config.model)
    task = tasks.load(config)
    items = splits.select(task, config)
    name = _name(config, dtype, adapter, task.fingerprint())
    folder = Path(config.results) / "local" / "evaluations"
    loaded = models.load(config.model, task.head, dtype=dtype, seed=config.seed, device=device)
    model = loaded.model if adapter is None else saved.with_adapter(loaded.model, adapter[0])
    if task.head.kind == "causal_lm" and options.gate == "on":
        found = gate.check(
            model,
            loaded.tokenizer,
            task,
            items.test,
            config.protocol,
            pretrained=models.is_pretrained(config.model),
            dtype=getattr(torch, dtype),
        )
        print(f"gate passed: {json.dumps({key: round(value, 4) for key, value in found.items()})}", file=sys.stderr)
    work = build_pipeline(task, loaded.tokenizer, config, folder / name, dtype)
    started = time.perf_counter()
    measurements, _ = per_item.apart(work.measure(model, items, None), checkpoint="")
    measurements = [entry for entry in measurements if entry["split"] == "test"]
    seconds = time.perf_counter() - started
    # The last measurement of a scoring is of all its items.
    scored = sum({entry["scoring"]: entry["items"] for entry in measurements}.values())
    for entry in measurements:
        entry["checkpoint"] = "base" if adapter is None else "adapter"
    notes = [*task.notes, *loaded.notes, *work.notes]
    result = {
        "model": config.model.name,
        "task": config.task.name,
        "protocol": config.protocol.name,
        "profile": config.profile.name,
        "adapter": None if adapter is None else {"folder": str(adapter[0]), "sha256": adapter[1]},
        "dtype": dtype,
        "eval_seconds": seconds,
        "items_from_before": work.known,
        "items_per_second": (scored - work.known) / seconds if scored > work.known else None,
        "notes": notes,
        "measurements": measurements,
    }
    out = options.out or folder / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    table = scores_table(measurements, f"{config.model.label}, {config.task.label}, protocol {config.protocol.name}")
    console = terminal.console()
    console.print(table)
    for note in notes:
        print(f"note: {escape.terminal(note)}")
    console.print(f"~ not distinguishable from guessing. {seconds:.0f} s; scores: {out}", soft_wrap=True)
    if work.known:
        console.print(
            f"{work.known} of {scored} predictions are from an earlier call: {folder / name} (remove it for new ones)",
            soft_wrap=True,
        )


def scores_table(measurements: list[dict[str, Any]], title: str) -> Any:
    """Return one row per subset and one column per metric of each scoring."""
    from dual_lora.report.screen import shown_as
    from dual_lora.report.terminal import FittedTable

    columns = list(dict.fromkeys((entry["scoring"], metric) for entry in measurements for metric in entry["metrics"]))
    rows = []
    for subset in dict.fromkeys(entry["subset"] for entry in measurements):
        cells = []
        for scoring, metric in columns:
            found = [e for e in measurements if (e["subset"], e["scoring"]) == (subset, scoring)]
            value = found[0]["metrics"].get(metric) if found else None
            mark = "~" if found and found[0]["at_chance"] else ""
            scale, decimals = shown_as(metric)
            cells.append("-" if value is None else f"{mark}{value * scale:.{decimals}f}")
        rows.append([subset, *cells])
    return FittedTable(["subset", *(f"{scoring}\n{metric}" for scoring, metric in columns)], rows, title)


def _name(config: RunConfig, dtype: str, adapter: tuple[Path, str] | None, data: dict[str, Any]) -> str:
    """Return a name for everything that decides the replies: the same command continues, another one starts over."""
    settings = replace(config, launch=replace(config.launch, eval_batch=None), results="", searchpath=None).to_dict()
    content = [settings, dtype, None if adapter is None else adapter[1], data]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
