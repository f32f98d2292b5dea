"""A rank that a layer cannot have is refused by the layer's name, unless the method means something else by it."""

from __future__ import annotations

import pytest

from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.runs.resolve import resolve


def planned(*words: str) -> None:
    [config] = compose(["model=llama3", "task=commonsense", *words])
    resolve(config, planned=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # LLaMA-3-8B: 4096 wide, 8 of 32 heads have keys and values, 1024 wide.
        (
            ["method=lora", "method.r=1025"],
            r"method\.r=1025: model\.layers\.0\.self_attn\.k_proj has 4096 inputs and",
        ),
        (
            ["method=dual_lora", "method.r_direction=2000"],
            r"r_direction=2000: .*k_proj.*r_direction=1024 or less",
        ),
        (["method=adalora", "method.init_r=1025"], r"method\.init_r=1025: .*k_proj"),
        (
            ["method=lora", "method.r=4097", "method.target_modules=[q_proj]"],
            r"q_proj has 4096 inputs and 4096",
        ),
    ],
)
def test_a_rank_above_what_a_layer_has_is_refused_with_the_layer_and_the_largest(words, told):
    with pytest.raises(ConfigError, match=told):
        planned(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["method=lora", "method.r=1024"],
        ["method=lora", "method.r=4096", "method.target_modules=[q_proj]"],
        ["method=lora", "method.r=4096", "method.target_modules=[lm_head]"],  # 4096 × 128256
        ["method=lora", "method.r=2000", "method.target_modules='.*q_proj'"],
        ["method=vera", "method.r=8192"],  # of its frozen projections
        ["method=pissa", "method.r=2000"],  # takes the singular vectors that there are
    ],
)
def test_what_a_layer_has_and_what_is_no_layers_rank_is_taken(words):
    planned(*words)
