"""Checkpoints of random weights: small models to be trained, large LLaMAs to measure speed with."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from dual_lora.config import ConfigError, ModelConfig
from dual_lora.models.sources import RANDOM_MARK

SPREAD = 0.02
INDEX = "model.safetensors.index.json"


def write_small(model: ModelConfig, folder: Path, tokenizers: Path | None) -> int:
    """Write the random checkpoint that a small model is trained from; return the bytes of the weights.

    Weights: float32, transformers' own initialisation on the CPU at a fixed seed (the last digits may differ between
    processors and releases of torch; a run's fingerprint is of the files). An encoder is written without a head. The
    folder appears once it is complete. Raises `ConfigError` if `tokenizers` is missing, `ModelError` for a missing
    file, `FileExistsError` if the folder exists.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from dual_lora.models.architecture import transformers_config
    from dual_lora.models.loading import max_tokens
    from dual_lora.models.real_tokenizers import real_tokenizer
    from dual_lora.models.shapes import CAUSAL_FAMILIES
    from dual_lora.models.sources import RANDOM_WEIGHTS_SEED
    from dual_lora.models.tiny_tokenizer import VOCAB_SIZE, tiny_tokenizer

    if folder.exists():
        raise FileExistsError(f"{folder} exists; give another out=, or remove it")
    if model.dimensions.vocab_size == VOCAB_SIZE:
        tokenizer = tiny_tokenizer(model.family, max_length=max_tokens(model))
    elif tokenizers is None:
        raise ConfigError(f"model={model.name} has its family's own vocabulary; give tokenizers=FOLDER (docs/data.md)")
    else:
        tokenizer = real_tokenizer(model.family, tokenizers, max_length=max_tokens(model))
    if len(tokenizer) > model.dimensions.vocab_size:
        raise ConfigError(
            f"tokenizers={tokenizers}: {len(tokenizer)} tokens, model={model.name} has {model.dimensions.vocab_size}; "
            "give model.dimensions.vocab_size=, or other files"
        )
    settings: dict[str, Any] = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")
    }
    if model.family in CAUSAL_FAMILIES:
        # 0.02 is for wide models. Here it would make the output embedding of a token that training never saw so short
        # that no hidden state (of norm √width after the last norm) makes it likely, and no adapter can lengthen it.
        settings["initializer_range"] = model.dimensions.hidden_size**-0.5
    kind = AutoModelForCausalLM if model.family in CAUSAL_FAMILIES else AutoModel
    torch.manual_seed(RANDOM_WEIGHTS_SEED)
    net = kind.from_config(transformers_config(model, **settings), dtype=torch.float32)
    part = folder.with_name(f"{folder.name}.part")
    net.save_pretrained(part)
    tokenizer.save_pretrained(part)
    _mark(part)
    part.rename(folder)
    return 4 * sum(parameter.numel() for parameter in net.parameters())


def write_llama(model: ModelConfig, folder: Path, workers: int = 8) -> int:
    """Write config, tokenizer and one safetensors file per layer; return the bytes of the weights.

    The folder appears once it is complete. Raises `ConfigError` for a family other than llama or too little space,
    `FileExistsError` if the folder exists.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from dual_lora.models.architecture import transformers_config
    from dual_lora.models.tiny_tokenizer import tiny_tokenizer

    if model.family != "llama":
        raise ConfigError(f"model={model.name} is of the family {model.family}; only llama can be made here")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give another out=, or remove it")
    tokenizer = tiny_tokenizer("llama", max_length=512)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos")}
    config = transformers_config(model, **ids)
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in net.state_dict().items():
        if name not in net.all_tied_weights_keys:
            files.setdefault(_file(name), {})[name] = tuple(tensor.shape)
    size = 2 * sum(torch.Size(shape).numel() for shapes in files.values() for shape in shapes.values())
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(parents=True)
    try:
        free = shutil.disk_usage(part).free
        if free < size:
            raise ConfigError(f"out={folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        work = [part / name for name in files], files.values()
        if workers == 1:
            list(map(_write_file, *work))
        else:
            context = multiprocessing.get_context("spawn")  # each draws on the GPU
            with ProcessPoolExecutor(min(workers, len(files)), mp_context=context) as pool:
                list(pool.map(_write_file, *work))
        weights = {name: file for file, shapes in files.items() for name in shapes}
        index = {"metadata": {"total_size": size}, "weight_map": weights}
        (part / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        config.save_pretrained(part)
        tokenizer.save_pretrained(part)
        _mark(part)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return size


def _mark(folder: Path) -> None:
    """Say in the folder that nobody trained these weights: no run takes them for a checkpoint that was not loaded."""
    (folder / RANDOM_MARK).write_text(
        "These weights were drawn at random by run.py random-checkpoint. A run does not expect them to know any\n"
        "language; take this file away once they have been trained.\n",
        encoding="utf-8",
    )


def _file(name: str) -> str:
    """Return the file of a weight: its layer's, or the one of embeddings and head."""
    layer = name.partition(".layers.")[2].partition(".")[0]
    return f"model-layer-{layer}.safetensors" if layer else f"model-{name.split('.')[-2]}.safetensors"


def _write_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % torch.cuda.device_count())
    tensors: dict[str, Any] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
            continue
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        generator = torch.Generator(device).manual_seed(seed)
        drawn = torch.empty(shape, dtype=torch.bfloat16, device=device)
        tensors[name] = drawn.normal_(0.0, SPREAD, generator=generator).cpu()
    save_file(tensors, path, metadata={"format": "pt"})
