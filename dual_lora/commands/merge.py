"""Write the base model with a saved adapter merged in: a stock checkpoint, which every program can load.

    python run.py merge ADAPTER out=FOLDER
    python run.py merge ADAPTER out=FOLDER base=BASE

The weights are W₀ + ΔW, summed in float32 and rounded once to the base's dtype: nothing is lost but that rounding.
ADAPTER is a folder that `save_pretrained` wrote. Its base is the one that it names, or `base=`: a folder or hub name.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dual_lora.commands.parser import Parser
from dual_lora.config import ConfigError


def options(parser: Parser) -> None:
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a folder with adapter_config.json")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--base", help="folder or hub name of the base model; default: what the adapter names")


def run(options: argparse.Namespace) -> int:
    """Raises `ConfigError`: no adapter, no base; `ValueError`: a base that cannot be merged into; `FileExistsError`."""
    from dual_lora import methods, models
    from dual_lora.methods.saved import adapter_hash

    with new_folder(options.out) as part:
        model, tokenizer = load_adapted(options.adapter, options.base)
        merged = models.fuse_attention(methods.export_merged(model))
        merged.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
        source = {"base": options.base or merged.config.name_or_path, "adapter_sha256": adapter_hash(options.adapter)}
        (part / "merged_from.json").write_text(json.dumps(source) + "\n", encoding="utf-8")
    print(options.out)
    return 0


def load_adapted(adapter: Path, base: str | None, device: str = "cpu") -> tuple[Any, Any]:
    """Return the base with the adapter, in evaluation mode and the base's dtype, and the tokenizer or None.

    Raises `ConfigError`: the folder has no adapter, or none that fits the base, or the base cannot be found.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from dual_lora.methods import saved
    from dual_lora.models.checkpoint_files import check_plain

    saved.adapter_hash(adapter)  # raises where files are missing
    settings = saved.settings(adapter)
    name = base or settings.get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{adapter} does not name its base model: give base=FOLDER, or a hub name")
    if Path(name).is_dir():
        check_plain(Path(name))
    auto: Any = AutoModelForSequenceClassification if settings.get("task_type") == "SEQ_CLS" else AutoModelForCausalLM
    mapping = settings.get("auto_mapping") or {}
    if (mapping.get("parent_library") or "").startswith("dual_lora."):  # a GPT-2 whose attention the suite has split
        auto = getattr(importlib.import_module(mapping["parent_library"]), mapping["base_model_class"])
    try:
        loaded = auto.from_pretrained(name, dtype="auto", use_safetensors=True, **_labels(adapter, settings))
    except OSError as error:
        raise ConfigError(f"base={name}: {str(error).strip().splitlines()[0]}") from error
    tokenizer = None
    for place in (str(adapter), name):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
            break
        except (OSError, ValueError):
            continue
    return saved.with_adapter(loaded.to(device), adapter), tokenizer


def _labels(adapter: Path, settings: dict[str, Any]) -> dict[str, int]:
    """A saved head fixes how many classes there are, which the base's own configuration does not know."""
    from safetensors import safe_open

    if settings["task_type"] != "SEQ_CLS":
        return {}
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
        heads = [name for name in names if name.endswith(("classifier.weight", "score.weight", "out_proj.weight"))]
        return {"num_labels": file.get_slice(heads[-1]).get_shape()[0]} if heads else {}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out` once it is whole. Raises `FileExistsError` if `out` exists."""
    if out.exists():
        raise FileExistsError(f"out={out} exists; give another folder, or remove it")
    part = out.with_name(f"{out.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
