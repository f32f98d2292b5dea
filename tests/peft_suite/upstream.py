"""Takes over tests of PEFT's own suite with Dual LoRA cases in place of PEFT's methods."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest

from tests.peft_suite.conftest import peft_sources


def upstream(name: str) -> ModuleType:
    """Import a module of PEFT's `tests` as part of a package of another name than our `tests`."""
    # Imported there for one isinstance check in the tests of image pipelines, which are not ours.
    diffusers = sys.modules.setdefault("diffusers", ModuleType("diffusers"))
    vars(diffusers).setdefault("StableDiffusionPipeline", type(None))
    if "upstream_peft_tests" not in sys.modules:
        package = ModuleType("upstream_peft_tests")
        package.__path__ = [str(peft_sources() / "tests")]
        sys.modules[package.__name__] = package
    return importlib.import_module(f"upstream_peft_tests.{name}")


def with_parameters(test: Callable, given: Mapping[str, Sequence[Any]], ids: Mapping[str, Sequence[str]]) -> Callable:
    """Return PEFT's test with our values for the parameters that `given` names; other parametrisations stay."""

    def run(self, *arguments: object, **keywords: object) -> None:
        test(self, *arguments, **keywords)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__wrapped__ = test  # type: ignore[attr-defined]  # pytest reads the argument names from here
    run.pytestmark = [  # type: ignore[attr-defined]
        pytest.mark.parametrize(mark.args[0], given[mark.args[0]], ids=ids[mark.args[0]]).mark
        if mark.name == "parametrize" and mark.args[0] in given
        else mark
        for mark in test.pytestmark
    ]
    return run


def parameters(test: object) -> set[str]:
    """Return what a test is parametrised over, as PEFT writes it."""
    return {mark.args[0] for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"}
