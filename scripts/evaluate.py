#!/usr/bin/env python
"""Score a saved PEFT adapter, trained here or elsewhere, or a base model without one.

    python scripts/evaluate.py adapter=FOLDER model=llama2 task=commonsense protocol=paper
    python scripts/evaluate.py model=smollm2 task=commonsense protocol=strict profile=quick \\
        data.source=local data.dir=FOLDER

    adapter=FOLDER   what save_pretrained wrote: adapter_config.json and adapter_model.safetensors; left out: the base
    out=FILE.json    where the scores go; default: results/local/evaluations/ID.json
    gate=off         skip the check of prompts, padding, mask and weights before the evaluation

Everything else is as for run.py (model, task, protocol, profile, data.*, launch.device, launch.eval_batch). The prompt
has to be the one the adapter was trained with: protocol and task.target choose it. The same command again, also with
another launch.eval_batch, goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dual_lora.config import ConfigError, RunConfig, nearest  # noqa: E402
from dual_lora.config.compose import compose  # noqa: E402

OWN = ("adapter", "out", "gate")


def main(arguments: list[str]) -> int:
    """Return 0, or 2 for something that cannot be evaluated."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        own, rest = _own(arguments)
        cells = compose(["method=none", *rest])
        if len(cells) != 1:
            raise ConfigError("evaluate.py scores one model at a time; give one value per setting and no -m")
        adapter = None if own.get("adapter", "none") == "none" else _adapter_files(Path(own["adapter"]))
        return _evaluate(cells[0], adapter, own)
    except (ConfigError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _own(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split this script's settings from those of run.py."""
    own = dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in OWN)
    if any(not value for value in own.values()):
        raise ConfigError("adapter=, out= and gate= need a value")
    if own.get("gate", "on") not in ("on", "off"):
        raise ConfigError(f"gate={own['gate']}: legal values are on, off{nearest(own['gate'], ['on', 'off'])}")
    rest = [argument for argument in arguments if argument.partition("=")[0] not in OWN]
    if any(argument.startswith("method=") for argument in rest):
        raise ConfigError("method= has no meaning here: the adapter's own config says what it is; use adapter=FOLDER")
    return own, rest


def _adapter_files(folder: Path) -> tuple[Path, str]:
    """Return the folder and the sha256 of what it holds. Raises `ConfigError` if it is no safetensors adapter."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        path = folder / name
        if not path.is_file():
            other = folder / "adapter_model.bin"
            hint = "; a pickled adapter_model.bin is not loaded: save it as safetensors" if other.is_file() else ""
            raise ConfigError(f"adapter={folder}: {name} is missing, save_pretrained writes it{hint}")
        digest.update(path.read_bytes())
    return folder, digest.hexdigest()


def _evaluate(config: RunConfig, adapter: tuple[Path, str] | None, own: dict[str, str]) -> int:
    import torch
    from rich.console import Console

    from dual_lora import models, tasks
    from dual_lora.evaluation import gate, pipeline
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
    model = loaded.model if adapter is None else with_adapter(loaded.model, adapter[0])
    if task.head.kind == "causal_lm" and own.get("gate", "on") == "on":
        pretrained = config.model.source != "random"
        found = gate.check(
            model,
            loaded.tokenizer,
            task,
            items.test,
            config.protocol,
            pretrained=pretrained,
            dtype=getattr(torch, dtype),
        )
        print(f"gate passed: {json.dumps({key: round(value, 4) for key, value in found.items()})}", file=sys.stderr)
    work = pipeline.build(task, loaded.tokenizer, config, folder / name, dtype)
    started = time.perf_counter()
    measurements = [entry for entry in work.measure(model, items, None) if entry["split"] == "test"]
    seconds = time.perf_counter() - started
    scored = sum(_items(measurements, scoring) for scoring in _scorings(measurements))
    for entry in measurements:
        entry["checkpoint"] = "base" if adapter is None else "adapter"
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
        "notes": [*task.notes, *work.notes],
        "measurements": measurements,
    }
    out = Path(own.get("out", folder / f"{name}.json"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    table = _table(measurements, f"{config.model.label}, {config.task.label}, protocol {config.protocol.name}")
    console = Console()
    console.print(table)
    console.print(f"~ not distinguishable from guessing. {seconds:.0f} s; scores: {out}", soft_wrap=True)
    if work.known:
        console.print(
            f"{work.known} of {scored} predictions are from an earlier call: {folder / name} (remove it for new ones)",
            soft_wrap=True,
        )
    return 0


def _table(measurements: list[dict[str, Any]], title: str) -> Any:
    """Return one row per subset and one column per metric of each scoring; fractions in percent."""
    from rich.table import Table

    columns = list(dict.fromkeys((entry["scoring"], metric) for entry in measurements for metric in entry["metrics"]))
    table = Table(title=title, title_justify="left")
    table.add_column("subset")
    for scoring, metric in columns:
        table.add_column(f"{scoring}\n{metric}", justify="right")
    for subset in dict.fromkeys(entry["subset"] for entry in measurements):
        cells = []
        for scoring, metric in columns:
            found = [e for e in measurements if (e["subset"], e["scoring"]) == (subset, scoring)]
            value = found[0]["metrics"].get(metric) if found else None
            mark = "~" if found and found[0]["at_chance"] else ""
            cells.append("-" if value is None else f"{mark}{value * 100:.1f}")
        table.add_row(subset, *cells)
    return table


def _name(config: RunConfig, dtype: str, adapter: tuple[Path, str] | None, data: dict[str, Any]) -> str:
    """Return a name for all that decides the replies, so that the same command goes on and another one starts anew."""
    settings = replace(config, launch=replace(config.launch, eval_batch=None), results="").to_dict()
    content = [settings, dtype, None if adapter is None else adapter[1], data]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_adapter(model: Any, folder: Path) -> Any:
    """Return the model with the adapter in evaluation mode. Raises `ConfigError` if the two do not belong together."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, str(folder)).eval()
        except (RuntimeError, ValueError, UserWarning, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"adapter={folder} does not fit this model ({first[:300]}); choose the model= it was trained on "
                f"(its adapter_config.json names {_base_name(folder)})"
            ) from None


def _base_name(folder: Path) -> str:
    values = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return repr(values.get("base_model_name_or_path"))


def _scorings(measurements: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(entry["scoring"] for entry in measurements))


def _items(measurements: list[dict[str, Any]], scoring: str) -> int:
    """Return how many items were scored: the last measurement of a scoring is of the whole."""
    return int([entry["items"] for entry in measurements if entry["scoring"] == scoring][-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
