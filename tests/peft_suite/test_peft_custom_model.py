"""PEFT's own suite for tuners, `TestPeftCustomModel`, run with Dual LoRA cases.

Every test that PEFT parametrises over (name, model, config class, settings) is taken over as it is, with our cases in
place of PEFT's. Tests of single methods (a fixed list of its own, not our parameters) are left behind.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from dual_lora import DualLoraConfig
from tests.peft_suite.conftest import peft_sources

PARAMETERS = "test_name, model_id, config_cls, config_kwargs"
RANKS = {"r_magnitude": 8, "r_direction": 8, "alpha": 8}
STARTS_AT_BASE = {**RANKS, "subtract_start": True, "init_std": 0.3}

CASES = [
    ("MLP, one layer by name", "MLP", DualLoraConfig, {"target_modules": "lin0", **RANKS}),
    ("MLP, two layers", "MLP", DualLoraConfig, {"target_modules": ["lin0", "lin1"], **RANKS}),
    ("MLP, odd ranks", "MLP", DualLoraConfig, {"target_modules": ["lin1"], "r_magnitude": 1, "r_direction": 3}),
    ("MLP, all linear layers", "MLP", DualLoraConfig, {"target_modules": "all-linear", **RANKS}),
    ("MLP, module to save", "MLP", DualLoraConfig, {"target_modules": ["lin0"], "modules_to_save": ["lin1"], **RANKS}),
    ("MLP, no activations", "MLP", DualLoraConfig, {
        "target_modules": ["lin0"], "magnitude_activation": "identity", "direction_activation": "identity",
        "init_std": 0.3, **RANKS,
    }),
    ("MLP, start subtracted", "MLP", DualLoraConfig, {"target_modules": ["lin0"], **STARTS_AT_BASE}),
    ("MLP, start subtracted, module to save", "MLP", DualLoraConfig, {
        "target_modules": ["lin0"], "modules_to_save": ["lin1"], **STARTS_AT_BASE,
    }),
    # This Conv1D has five weights: with r1 = 8, the seed that PEFT sets draws a B A without a positive entry, a dead
    # update. Its gradients are small: with σ = 0.02 the factors move, but by less than the 1e-4 that PEFT's test asks.
    ("Conv1D", "EmbConv1D", DualLoraConfig, {"target_modules": ["conv1d"], **RANKS, "r_magnitude": 4, "init_std": 0.5}),
    ("Conv1D, start subtracted", "EmbConv1D", DualLoraConfig, {
        "target_modules": ["conv1d"], **STARTS_AT_BASE, "r_magnitude": 4, "init_std": 0.5,
    }),
]  # fmt: skip

# These assert that a fresh adapter leaves the output as it was. Dual LoRA promises that only with subtract_start.
ASSERTS_START_AT_BASE = {"test_disable_adapters", "test_disable_adapters_with_merging"}


def import_upstream() -> ModuleType:
    """Import PEFT's `tests/test_custom_models.py` as part of a package of another name than our `tests`."""
    # Imported there for one isinstance check in the tests of image pipelines, which are not ours.
    diffusers = sys.modules.setdefault("diffusers", ModuleType("diffusers"))
    vars(diffusers).setdefault("StableDiffusionPipeline", type(None))
    package = ModuleType("upstream_peft_tests")
    package.__path__ = [str(peft_sources() / "tests")]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.test_custom_models")


upstream = import_upstream()


def with_our_cases(test: Callable) -> Callable:
    """Return PEFT's test with Dual LoRA cases as its parameters; other parametrisations stay."""
    cases = CASES
    if test.__name__ in ASSERTS_START_AT_BASE:
        cases = [case for case in CASES if case[3].get("subtract_start")]

    def run(self, *arguments: object, **keywords: object) -> None:
        test(self, *arguments, **keywords)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__wrapped__ = test  # type: ignore[attr-defined]  # pytest reads the argument names from here
    run.pytestmark = [  # type: ignore[attr-defined]
        pytest.mark.parametrize(PARAMETERS, cases, ids=[case[0] for case in cases]).mark
        if mark.name == "parametrize" and mark.args[0] == PARAMETERS
        else mark
        for mark in test.pytestmark
    ]
    return run


def takes_method_cases(test: object) -> bool:
    marks = getattr(test, "pytestmark", [])
    return any(mark.name == "parametrize" and mark.args[0] == PARAMETERS for mark in marks)


TestPeftCustomModelWithDualLora = type(
    "TestPeftCustomModelWithDualLora",
    (upstream.PeftCommonTester,),
    {
        "transformers_class": upstream.MockTransformerWrapper,
        "prepare_inputs_for_testing": upstream.TestPeftCustomModel.prepare_inputs_for_testing,
        "_check_requires_grad": upstream.TestPeftCustomModel.__dict__.get("_check_requires_grad"),
        **{
            name: with_our_cases(test)
            for name, test in vars(upstream.TestPeftCustomModel).items()
            if name.startswith("test_") and takes_method_cases(test)
        },
    },
)


def test_the_whole_upstream_suite_was_taken_over() -> None:
    """A renamed parameter list upstream would otherwise leave an empty class that passes."""
    taken = [name for name in vars(TestPeftCustomModelWithDualLora) if name.startswith("test_")]
    assert len(taken) >= 35
