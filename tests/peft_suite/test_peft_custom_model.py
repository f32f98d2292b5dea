"""PEFT's own suite for tuners, `TestPeftCustomModel`, run with Dual LoRA cases.

Every test that PEFT parametrises over (name, model, config class, settings) is taken over as it is, with our cases in
place of PEFT's. Tests of single methods (a fixed list of its own, not our parameters) are left behind.
"""

from __future__ import annotations

from collections.abc import Callable

from dual_lora import DualLoraConfig
from tests.peft_suite.upstream import parameters, upstream, with_parameters

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


module = upstream("test_custom_models")


def with_our_cases(test: Callable) -> Callable:
    """Return PEFT's test with Dual LoRA cases as its parameters."""
    cases = CASES
    if test.__name__ in ASSERTS_START_AT_BASE:
        cases = [case for case in CASES if case[3].get("subtract_start")]
    return with_parameters(test, {PARAMETERS: cases}, {PARAMETERS: [case[0] for case in cases]})


TestPeftCustomModelWithDualLora = type(
    "TestPeftCustomModelWithDualLora",
    (module.PeftCommonTester,),
    {
        "transformers_class": module.MockTransformerWrapper,
        "prepare_inputs_for_testing": module.TestPeftCustomModel.prepare_inputs_for_testing,
        "_check_requires_grad": module.TestPeftCustomModel.__dict__.get("_check_requires_grad"),
        **{
            name: with_our_cases(test)
            for name, test in vars(module.TestPeftCustomModel).items()
            if name.startswith("test_") and PARAMETERS in parameters(test)
        },
    },
)


def test_the_whole_upstream_suite_was_taken_over() -> None:
    """A renamed parameter list upstream would otherwise leave an empty class that passes."""
    taken = [name for name in vars(TestPeftCustomModelWithDualLora) if name.startswith("test_")]
    assert len(taken) >= 35
