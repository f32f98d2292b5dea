"""A full disk, said in one line: which folder, how much is free, what to do."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded")  # of libraries with errors of their own
_NEARLY_NOTHING = 2**20  # bytes; torch.save says only that a write has failed


def shortage(error: BaseException, folder: Path) -> str | None:
    """Return what to say of an error that a full disk has caused, or None for any other.

    folder: where this process writes, for an error that names no file.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    named = [one.filename for one in chain if isinstance(one, OSError) and isinstance(one.filename, str)]
    place = Path(named[0]).parent if named else folder
    while not place.is_dir() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    told = any(getattr(one, "errno", None) in _FULL or any(word in str(one) for word in _WORDS) for one in chain)
    if not told and not (isinstance(chain[0], OSError | RuntimeError) and free < _NEARLY_NOTHING):
        return None
    return (
        f"No space left on device: {place} has {free / 2**20:,.0f} MiB free, or a quota is used up; free some, or take "
        "another disk with results=FOLDER; then the same command with retry=true continues"
    )
