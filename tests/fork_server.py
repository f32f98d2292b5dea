"""What the fork server of a test process has loaded: the same for all of its tests.

A process has one fork server, and what it loads is what the first says that asks for it. A benchmark's, or that of
runs side by side, would also fork the runs that tests of faults kill, and each of those would import what it needs,
and look through all imports for garbage: 1.2 s of computing instead of 0.35.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from multiprocessing import forkserver

import pytest

_EVERY = ["tests.faults.children", "tests.faults.heavy"]


@functools.cache
def load_all() -> None:
    """From now on in this process, whatever else a test or the suite asks for."""
    preload = forkserver.set_forkserver_preload
    preload(_EVERY)

    def with_all(names: Sequence[str]) -> None:
        preload([*names, *_EVERY])

    pytest.MonkeyPatch().setattr(forkserver, "set_forkserver_preload", with_all)
