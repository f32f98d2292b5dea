"""Measure a trained update: size, zeros, signs, ranks, agreement with full fine-tuning.

    python run.py analyze results/runs/RUN_ID
    python run.py analyze results/runs/RUN_ID --full results/runs/FULL_RUN_ID
    python run.py analyze ADAPTER_FOLDER --base MODEL_FOLDER

Ranks are shown next to those of an untrained update of the same form: they say nothing without that control. A run
folder has its resolved config, so the right base is loaded. For an adapter from elsewhere `--base` names a folder with
the base model; without it the adapter's own base_model_name_or_path is used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dual_lora.commands.merge import load_adapted
from dual_lora.commands.parser import Parser
from dual_lora.config import ConfigError

COLUMNS = (
    "update_ratio",
    "zero_share",
    "positive_share",
    "max_abs_p",
    "numerical_rank",
    "untrained_numerical_rank",
    "stable_rank",
    "untrained_stable_rank",
    "cosine",
    "sign_agreement",
    "subspace_overlap",
)


def options(parser: Parser) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER", help="a run folder, or one with adapter_config.json")
    parser.add_argument("--base", help="folder (or hub name) of the base model, for an adapter that is not from a run")
    parser.add_argument(
        "--full", type=Path, help="run folder or weights (safetensors) of the same run with full fine-tuning"
    )
    parser.add_argument(
        "--layers", type=int, default=24, help="compute ranks for that many layers (default 24); 0 for all"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--output", type=Path, help="also write all numbers to this JSON file")


def load(options: argparse.Namespace) -> Any:
    """Return the PEFT model of a run folder or of an adapter folder."""
    run_config = options.source / "config.json"
    adapter = options.source / "adapter" if run_config.is_file() else options.source
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError(
            f"{options.source}: neither a run folder of an adapter method nor a folder with adapter_config.json "
            "(a run's is results/runs/RUN_ID, as long as its weights are there: clean --remove --weights removes them)"
        )
    if not run_config.is_file():
        return load_adapted(adapter, options.base, options.device)[0]

    from dual_lora import models, tasks
    from dual_lora.methods.saved import with_adapter
    from dual_lora.runs.lifecycle import load_config

    config = load_config(run_config)
    dtype, head = models.resolve_dtype(config.model, options.device), tasks.load(config).head
    loaded = models.load(config.model, head, dtype=dtype, seed=config.seed, device=options.device)
    return with_adapter(loaded.model, adapter)


def full_weights(path: Path | None) -> Path | None:
    if path is None or path.is_file():
        return path
    weights = path / "last.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{path}: no full fine-tuning run (last.safetensors is missing)")
    return weights


def table(found: dict[str, dict[str, float]]) -> str:
    """Return one line per layer; a number that was not computed is a dash."""
    columns = [name for name in COLUMNS if any(name in values for values in found.values())]
    width = max(len(name) for name in found)
    lines = [" " * width + "".join(f"  {name}" for name in columns)]
    for layer, values in found.items():
        cells = [f"{values[name]:.4g}" if name in values else "-" for name in columns]
        lines.append(
            f"{layer:<{width}}" + "".join(f"  {c:>{len(name)}}" for c, name in zip(cells, columns, strict=True))
        )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Print the measures of every layer. Raises `ConfigError` for a folder that holds no adapter."""
    from dual_lora.diagnostics.analysis import analyze

    found = analyze(load(options), rank_layers=options.layers or None, reference=full_weights(options.full))
    print(table(found))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0
