"""Groups whose processes are forked from a server that has loaded everything: each would import for six seconds.

The rest is as in any group: torchrun's agent, the rendezvous, `launch.worker`. Groups of real commands are in the slow
tests, and one is in tests/faults/test_groups.py.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed.launcher import api

from dual_lora import shipped


def fork_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on in this test, let torchrun's agent fork the processes of a group."""
    start = api.elastic_launch

    def elastic_launch(config: api.LaunchConfig, program: str) -> Callable[..., Any]:
        def launched(*words: str) -> Any:
            *command, flag, file = program, *words
            assert (command, flag) == (shipped.command(), "--worker")
            return start(dataclasses.replace(config, start_method="forkserver"), member)(file)

        return launched

    monkeypatch.setattr(api, "elastic_launch", elastic_launch)


def member(file: str) -> None:
    """One process of a group, as `run.py --worker FILE`."""
    import torch

    from dual_lora.launch.worker import work

    torch.set_num_threads(1)
    if code := work(file):
        os._exit(code)
