"""Published data at pinned commits: Parquet files of the Hugging Face hub, and the files of the LoRA release.

The release's texts are on no hub, so `data.source=hub` takes them from its own repository on GitHub and checks each
against its sha256. Only data is read: no loading script runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dual_lora.config import DataError
from dual_lora.records import file_sha256

RELEASE = "https://raw.githubusercontent.com/microsoft/LoRA/"
RELEASE_REVISION = "3732c24dba0559fe4393bfc8f295b83947a2c5e0"
# Under examples/NLG/data/; the sums are those of complete copies of the same files.
RELEASE_SHA256 = {
    "e2e/train.txt": "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
    "e2e/valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
    "e2e/test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
    "webnlg_challenge_2017/train.json": "180edb6011360608c8548d4551366a9d55f140cbf9bc9397fbf4d97f6a89c639",
    "webnlg_challenge_2017/dev.json": "50f5a2c24d760bc84ba3e852707cd3b43b0cf2da035b425f87945a2440880488",
    "webnlg_challenge_2017/test.json": "2574896b23b5959d1a0cd4bb501ffbeff1a11790a9996c4cb8efed289149ff4f",
}
_ALTERNATIVES = (
    "Without a network: data.source=local data.dir=FOLDER (layout: docs/data.md), or data.source=sample where the task "
    "has a sample"
)


def pinned_file(address: str, otherwise: str = _ALTERNATIVES) -> Path:
    """Return the local copy of a file that never changes, fetched once.

    Raises `DataError` if it cannot be had, which ends with `otherwise`, what one can do then.
    """
    from datasets import DownloadConfig, DownloadManager

    try:
        # use_etag=False: a pinned file never changes, so a copy that is here is used without asking the network.
        settings = DownloadConfig(use_etag=False, max_retries=1, disable_tqdm=True)
        return Path(str(DownloadManager(download_config=settings).download(address)))
    except Exception as error:  # the client raises many kinds; all mean that the file cannot be had
        raise DataError(f"{address} cannot be fetched ({type(error).__name__}: {error}). {otherwise}") from None


def release_file(name: str) -> tuple[Path, str]:
    """Return a file of the LoRA release's `examples/NLG/data`, fetched once: its path and its sha256.

    The path's own name is the cache's. Raises `DataError` without a network, or if the content is not the pinned one.
    """
    path = pinned_file(f"{RELEASE}{RELEASE_REVISION}/examples/NLG/data/{name}")
    digest = file_sha256(path)
    if digest != RELEASE_SHA256[name]:
        raise DataError(
            f"{path}: sha256 {digest}, expected {RELEASE_SHA256[name]} for {name} of the LoRA release; the download is "
            "damaged or the file was changed. Delete it and try again"
        )
    return path, digest


def parquet_rows(repository: str, revision: str, file: str) -> list[dict[str, Any]]:
    """Return the rows of one Parquet file of a data set at a pinned commit.

    Raises `DataError`, which names the alternatives, if the file is not available (no network, no such file).
    """
    import pyarrow.parquet
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repository, file, repo_type="dataset", revision=revision)
    except Exception as error:  # as above
        raise DataError(
            f"{repository}/{file} at {revision} cannot be fetched from the hub ({type(error).__name__}: {error}). "
            f"{_ALTERNATIVES}"
        ) from None
    return pyarrow.parquet.read_table(path).to_pylist()


def column(row: dict[str, Any], name: str, place: str, number: int) -> Any:
    """Return a row's value. Raises `DataError` if the column is missing; `number` counts from 1."""
    if name not in row:
        raise DataError(f"{place}, item {number}, field {name!r}: missing; the row has {', '.join(sorted(row))}")
    return row[name]
