from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: the same sums in every process

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The numbers of runs that nobody disturbs, by kind of cell."""
    from tests.faults.children import run
    from tests.small_cells import CLASSIFYING, WRITING, numbers, only_record

    results = tmp_path_factory.mktemp("undisturbed")
    found = {}
    for name, kind in (("writing", WRITING), ("classifying", CLASSIFYING)):
        child = run(results / name, kind=kind)
        assert child.code == 0, child.log
        found[name] = numbers(only_record(results / name))
    return found
