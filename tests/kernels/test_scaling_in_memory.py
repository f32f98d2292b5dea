"""s and 1 / |s| read from memory: the bits of the same numbers given with the launch; what is recorded follows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dual_lora.kernels import Update, apply_update, update_spec
from dual_lora.kernels.spec import limit
from tests.kernels.cases import RULE_IDS, RULES, Case, make_case
from tests.kernels.conftest import INTERPRETS
from tests.unit.training.test_graphed_trainings import assert_same_bits, trained


def held(scaling: float, device: str) -> Tensor:
    return torch.tensor([scaling, limit(scaling)], dtype=torch.float32, device=device)


def run(case: Case, scaling: float, in_memory: Tensor | None = None) -> dict[str, Tensor]:
    """Output and gradients with the fused kernels, which read `scaling` only without `in_memory`."""
    options = dict(case.options)
    start = options.pop("start", None)
    x, *factors = (leaf.detach().clone().requires_grad_() for leaf in (case.x, *case.factors))
    spec = update_spec(**options, kernel="fused")
    update = Update((factors[0], factors[1], factors[2], factors[3]), start, scaling, spec, in_memory)
    y = apply_update(x, case.weight, case.bias, update)
    grads = torch.autograd.grad(y, [x, *factors], case.grad.to(y.dtype))
    return dict(zip(("y", "x", "A", "B", "C", "D"), (y.detach(), *grads), strict=True))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.triton
@pytest.mark.parametrize(
    "shape", [{}, {"leading": (40,), "ranks": (33, 8)}, {"leading": (40,), "start": True}], ids=str
)
@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
def test_it_has_the_bits_of_the_same_float(fused_device: str, rule: dict[str, str], shape: dict[str, Any]) -> None:
    """Few tokens, ranks beyond a block (by GEMMs), and the reduction that rebuilds."""
    case = make_case(device=fused_device, seed=3, **shape, **rule)
    for scaling in (0.0, 0.3, -1.7):
        found = run(case, float("nan"), held(scaling, fused_device))
        assert_equal(found, run(case, scaling))


@pytest.mark.triton
@pytest.mark.skipif(not INTERPRETS, reason="a training on a CPU: make test-interpreter")
def test_a_graphed_training_warms_up_as_an_eager_one(tmp_path: Path) -> None:
    """On a CPU, so a replay calls the step on its buffers; of one shape all steps but the first are replays."""
    words = ["method=dual_lora", "kernel=fused", "method.delta_warmup_steps=3", "profile.max_steps=4"]
    words += ["model.dimensions.num_layers=1", "model.dimensions.intermediate_size=64"]
    words += ["method.target_modules=[k_proj,up_proj]"]  # the interpreter takes seconds for five
    eager, graphed = (trained(tmp_path / str(way), way, words, "writing") for way in (False, True))
    assert_same_bits(graphed, eager)
    said = graphed[0]["execution"]["graphs"]
    assert said["eager"] == said["captures"] < said["replays"]


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [(16, 16), (40, 16)], ids=["reduced", "by-gemm"])
def test_what_was_recorded_follows(cuda: str, ranks: tuple[int, int]) -> None:
    """A layer with packed factors, whose kernels a GPU compiles apart for a number and for an address."""
    case = make_case((64,), 2048, 1024, ranks, dtype=torch.bfloat16, device=cuda)
    pair = held(0.5, cuda)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(case, float("nan"), pair)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream), torch.autograd.set_multithreading_enabled(False):
            found = run(case, float("nan"), pair)
        for scaling in (0.0, 0.1, 1 / 3, 1.0):
            pair.copy_(held(scaling, cuda))
            graph.replay()
            assert_equal(found, run(case, scaling))
