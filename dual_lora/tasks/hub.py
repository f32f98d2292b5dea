"""Reading pinned Parquet files of Hugging Face data sets. Only data is read: no loading script runs."""

from __future__ import annotations

from typing import Any

from dual_lora.tasks.base import DataError


def parquet_rows(repository: str, revision: str, file: str) -> list[dict[str, Any]]:
    """Return the rows of one Parquet file of a data set at a pinned commit.

    Raises `DataError` that names the ways on when the file cannot be had (no network, no such file).
    """
    import pyarrow.parquet
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repository, file, repo_type="dataset", revision=revision)
    except Exception as error:  # the hub's client raises many kinds; all mean that the file cannot be had
        raise DataError(
            f"{repository}/{file} at {revision} cannot be fetched from the hub ({type(error).__name__}: {error}). "
            "Without a network: data.source=local data.dir=FOLDER (layout: docs/data.md), or data.source=sample "
            "where the task has a sample"
        ) from None
    return pyarrow.parquet.read_table(path).to_pylist()


def column(row: dict[str, Any], name: str, place: str, number: int) -> Any:
    """Return a row's value. Raises `DataError` if the column is missing; `number` counts from 1."""
    if name not in row:
        raise DataError(f"{place}, item {number}, field {name!r}: missing; the row has {', '.join(sorted(row))}")
    return row[name]
