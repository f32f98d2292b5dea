"""What only a GPU can show: real tensor cores, memory, large offsets, training. Run with `make test-gpu`."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dual_lora.kernels import delta_weight, dual_lora_linear
from tests.kernels.cases import RULE_IDS, RULES, make_case, relative_error

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
@pytest.mark.parametrize("tokens", [16, 1000], ids=["few-tokens", "many-tokens"])
@pytest.mark.parametrize("ranks", [(16, 16), (20, 32), (40, 64)], ids=str)
def test_bf16_errs_at_most_a_little_more_than_the_bf16_reference(
    cuda: str, rule: dict[str, str], tokens: int, ranks: tuple[int, int]
) -> None:
    """Against float64: 1.1 times the reference's error for y and dL/dx, twice for the factor gradients.

    The latter see two more roundings of the size of G's own: of the factors and of Gp, hence a factor of sqrt(3).
    """
    case = make_case(
        (tokens,), 1100, 900, ranks, dtype=torch.bfloat16, device=cuda, factor_std=0.05, grad_std=0.05, seed=5, **rule
    )
    truth = case.to(torch.float64, torch.float64).run("reference")
    expected, actual = case.run("reference"), case.run("fused")
    for name, value in actual.items():
        allowed = (2.0 if name[-1] in "ABCD" else 1.1) * relative_error(expected[name], truth[name]) + 1e-6
        assert relative_error(value, truth[name]) <= allowed, name


@pytest.mark.parametrize("rule", RULES, ids=RULE_IDS)
def test_float32_equals_the_reference_outside_the_sign_band(cuda: str, rule: dict[str, str]) -> None:
    case = make_case((300,), 700, 600, (16, 16), device=cuda, factor_std=0.05, grad_std=0.05, seed=6, **rule)
    expected, actual = case.run("reference"), case.run("fused")
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) < 2e-5, errors


def test_signs_differ_from_float64_only_in_a_tiny_band(cuda: str) -> None:
    """|P| <= 8 eps32 (|D| |C|), eps32 = 2^-24, at the spread of training (0.02) on the largest LLaMA-7B layer."""
    A, B, C, D = make_case(
        in_features=4096, out_features=11008, ranks=(1, 16), device=cuda, factor_std=0.02, seed=7
    ).factors
    positive = delta_weight(A.abs() + 1, B.abs() + 1, C, D, 1.0, kernel="fused") > 0
    p = D.double() @ C.double()
    bound = 8 * 2.0**-24 * (D.double().abs() @ C.double().abs())
    inside = p.abs() <= bound
    assert inside.double().mean() < 1e-5
    assert torch.equal(positive[~inside], (p > 0)[~inside])


def effective_weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """dW in `dtype` as merge, both forward kernels and backward's rebuild form it, with scaling 1."""
    from dual_lora.kernels import fused
    from dual_lora.kernels.packing import prepare
    from dual_lora.kernels.spec import Update, update_spec

    case = make_case(in_features=1000, out_features=700, ranks=(16, 16), device="cuda", factor_std=0.02, seed=8)
    update = Update(tuple(case.factors), None, 1.0, update_spec())
    eye = torch.eye(1000, device="cuda", dtype=dtype)
    few = [fused.forward(rows, None, None, update) for rows in eye.split(25)]
    g = torch.randn(700, 1000, device="cuda").to(dtype)
    fused.reduce(g, None, prepare(update), rebuild=True)
    return {
        "merge": fused.delta_weight(update).to(dtype),
        "forward": fused.forward(eye, None, None, update).t(),
        "few tokens": torch.cat(few).t(),
        "backward": g,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_signs_agree_bitwise_between_forward_backward_and_merge(cuda: str, dtype: torch.dtype) -> None:
    weights = effective_weights(dtype)
    for name, weight in weights.items():
        assert torch.equal(weight > 0, weights["merge"] > 0), name
        assert torch.equal(weight < 0, weights["merge"] < 0), name
    assert torch.equal(weights["forward"], weights["backward"])
    assert torch.equal(weights["forward"], weights["few tokens"])


def test_every_output_element_is_written(cuda: str) -> None:
    """Uninitialized memory is filled with NaN; nothing of it may come through."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for shape in ((13, 70, 3), (130, 257, 100)):
            case = make_case((shape[2],), shape[0], shape[1], (16, 5), device=cuda, dtype=torch.bfloat16)
            assert all(torch.isfinite(value).all() for value in case.run("fused").values())
    finally:
        torch.use_deterministic_algorithms(False)


def test_gradients_are_bitwise_reproducible(cuda: str) -> None:
    case = make_case((1024,), 2048, 1500, (16, 16), device=cuda, dtype=torch.bfloat16)
    first = case.run("fused")
    for _ in range(5):
        again = case.run("fused")
        assert all(torch.equal(first[name], again[name]) for name in first)


def peak(run: Callable[[], torch.Tensor | None]) -> tuple[torch.Tensor | None, int, int]:
    """The call's result, the most bytes that were allocated during it beyond those before, and how many are left."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    return result, torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before


@pytest.mark.parametrize("input_grad", [False, True], ids=["first-layer", "inner-layer"])
def test_one_buffer_of_the_weights_size_lives_during_a_call_and_none_after(cuda: str, input_grad: bool) -> None:
    from dual_lora.kernels import fused
    from dual_lora.kernels.packing import prepare
    from dual_lora.kernels.spec import Update, update_spec

    case = make_case((64 * 4,), 4096, 4096, (16, 16), device=cuda, dtype=torch.bfloat16, bias=False)
    x, factors = case.x.requires_grad_(input_grad), tuple(f.requires_grad_() for f in case.factors)
    size = case.weight.nbytes
    parts, geometry, *_ = prepare(Update(tuple(case.factors), None, 0.7, update_spec()))
    plan = fused.reduction_plan(geometry, case.weight if input_grad else None, x.dtype, rebuild=input_grad)
    packed, sums = sum(part.nbytes for part in parts[:4]), 4 * plan.workspace
    # PyTorch does not split what is left of a block when that is less than 1 MiB: of the packed factors', the weight's
    # and the partial sums' blocks.
    slack = 3 * 2**20 + 2**14

    dual_lora_linear(x, case.weight, None, *factors, 0.7).backward(case.grad)
    y, top, left = peak(lambda: dual_lora_linear(x, case.weight, None, *factors, 0.7))
    assert 0 <= top - (size + packed + y.nbytes) <= slack
    assert left < 0.1 * size
    _, top, left = peak(lambda: y.backward(case.grad))
    assert 0 <= top - (size + packed + sums + sum(f.nbytes for f in factors)) <= slack
    assert left < 0.1 * size
    assert sums <= 1.3 * size  # rank 16: 2 bytes per weight element for strips of 64 rows, and what fills the card


def test_weights_beyond_two_to_the_31_bytes(cuda: str) -> None:
    """128256 x 8192 (LLaMA-3 70B's head); rows at the end are compared, where a 32-bit offset would have wrapped."""
    out, in_ = 128256, 8192
    weight = torch.empty(out, in_, device=cuda, dtype=torch.bfloat16).normal_(std=0.01)
    factors = [torch.randn(s, device=cuda).mul_(0.02) for s in ((4, in_), (out, 4), (4, in_), (out, 4))]
    x = torch.randn(80, in_, device=cuda, dtype=torch.bfloat16)
    grad = torch.randn(80, out, device=cuda, dtype=torch.bfloat16)
    leaves = [f.requires_grad_() for f in factors]
    y = dual_lora_linear(x, weight, None, *leaves, 0.5, kernel="fused")
    grads = torch.autograd.grad(y, leaves, grad)
    A, B, C, D = (f.detach() for f in factors)
    tail = slice(out - 300, out)
    rest = [A, B[tail].clone(), C, D[tail].clone()]
    rest = [f.requires_grad_() for f in rest]
    y_tail = dual_lora_linear(x, weight[tail], None, *rest, 0.5, kernel="reference")
    expected = torch.autograd.grad(y_tail, (rest[1], rest[3]), grad[:, tail])
    assert relative_error(y[:, tail].detach(), y_tail.detach()) < 5e-3
    assert relative_error(grads[1][tail], expected[0]) < 5e-3
    assert relative_error(grads[3][tail], expected[1]) < 5e-3


class Layers(nn.Module):
    """Two adapted layers around a nonlinearity, the second one with a transposed weight."""

    def __init__(self, kernel: str, features: int = 128, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def factor(*shape: int, std: float = 0.02) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) * std

        base = torch.Generator().manual_seed(100)
        shapes = ((16, features), (features, 16)) * 2
        self.a1, self.b1, self.c1, self.d1 = (nn.Parameter(factor(*shape)) for shape in shapes)
        self.a2, self.b2, self.c2, self.d2 = (nn.Parameter(factor(*shape)) for shape in shapes)
        self.register_buffer("w1", torch.randn(features, features, generator=base) * features**-0.5)
        self.register_buffer("w2", torch.randn(features, features, generator=base) * features**-0.5)
        self.kernel, self.scaling = kernel, 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w1, w2 = self.w1.to(x.dtype), self.w2.to(x.dtype)
        first, second = (self.a1, self.b1, self.c1, self.d1), (self.a2, self.b2, self.c2, self.d2)
        h = torch.tanh(dual_lora_linear(x, w1, None, *first, self.scaling, kernel=self.kernel))
        return dual_lora_linear(h, w2, None, *second, self.scaling, transposed=True, kernel=self.kernel)


def train(kernel: str, seed: int, steps: int = 150) -> torch.Tensor:
    """Losses of a regression onto another random network, bf16 activations, AdamW."""
    data = torch.Generator(device="cuda").manual_seed(1)
    model, teacher = Layers(kernel, seed=seed).cuda(), nn.Linear(128, 128, device="cuda")
    with torch.no_grad():
        teacher.weight.copy_(torch.randn(128, 128, generator=data, device="cuda") * 0.1)
        teacher.bias.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        x = torch.randn(256, 128, generator=data, device="cuda")
        loss = (model(x.bfloat16()).float() - teacher(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_training_with_fused_and_generic_kernels_agrees_within_the_spread_of_seeds(cuda: str) -> None:
    fused, generic, other_seed = train("fused", 0), train("generic", 0), train("fused", 1)
    assert fused[-20:].mean() < 0.8 * fused[:5].mean(), "the model must learn something"
    spread = (fused - other_seed).abs()[-100:].mean()
    assert (fused - generic).abs()[-100:].mean() <= spread


def test_compiled_model_has_no_break_and_equals_eager(cuda: str) -> None:
    torch._dynamo.reset()
    model = Layers("auto").cuda()
    x = torch.randn(200, 128, device=cuda, dtype=torch.bfloat16)
    compiled = torch.compile(model, fullgraph=True)
    expected, actual = model(x), compiled(x)
    assert relative_error(actual.detach(), expected.detach()) < 1e-2
    (grad,) = torch.autograd.grad(actual.float().sum(), model.a1)
    (truth,) = torch.autograd.grad(expected.float().sum(), model.a1)
    assert relative_error(grad, truth) < 2e-2


def test_checkpointing_autocast_and_no_grad(cuda: str) -> None:
    model = Layers("fused").cuda()
    x = torch.randn(200, 128, device=cuda, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        plain, kept = model(x), checkpoint(model, x, use_reentrant=False)
        with torch.no_grad():
            assert torch.equal(model(x), plain)
    assert plain.dtype == torch.bfloat16
    first = torch.autograd.grad(plain.float().sum(), [x, *model.parameters()])
    second = torch.autograd.grad(kept.float().sum(), [x, *model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_few_tokens_replay_in_a_cuda_graph(cuda: str) -> None:
    case = make_case((4,), 1024, 512, (16, 16), dtype=torch.bfloat16, device=cuda)
    x, factors = case.x.clone(), tuple(case.factors)
    with torch.no_grad():
        dual_lora_linear(x, case.weight, None, *factors, 0.7)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = dual_lora_linear(x, case.weight, None, *factors, 0.7)
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert torch.equal(y, dual_lora_linear(x, case.weight, None, *factors, 0.7))
