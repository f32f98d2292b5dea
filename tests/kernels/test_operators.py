"""The registered operators: what torch.compile, export and the fake tensors of tracing rely on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import lookup_backend

from dual_lora.kernels import dual_lora_delta_linear, dual_lora_linear, operators
from tests.kernels.cases import Case, make_case, relative_error


def arguments(case: Case) -> tuple[Any, ...]:
    options = case.options
    return (
        case.x,
        case.weight,
        case.bias,
        None,
        *case.factors,
        list(options.get("start") or ()),
        torch.tensor(case.scaling, dtype=torch.float64),
        torch.tensor(1.0, dtype=torch.float64),  # loss_scale
        "clipped_gradient",
        "relu",
        "sign",
        options["transposed"],
        "generic",
    )


@pytest.mark.parametrize("start", [False, True], ids=["", "subtract-start"])
def test_operator_passes_every_check_of_torch(start: bool) -> None:
    case = make_case((5,), start=start, transposed=start)
    for tensor in (case.x, case.bias, *case.factors):
        tensor.requires_grad_()
    torch.library.opcheck(operators.linear, arguments(case))


def test_operator_without_a_weight_passes_every_check_of_torch() -> None:
    case = make_case((5,))
    base = torch.randn(5, 13).requires_grad_()
    for tensor in (case.x, *case.factors):
        tensor.requires_grad_()
    torch.library.opcheck(operators.linear, (case.x, None, None, base, *arguments(case)[4:]))


def test_operator_has_the_gradients_of_the_eager_function() -> None:
    case = make_case(start=True)
    leaves = (case.x, case.bias, *case.factors)
    for tensor in leaves:
        tensor.requires_grad_()
    eager = case.run("generic")
    grads = torch.autograd.grad(operators.linear(*arguments(case)), leaves, case.grad)
    for name, value in zip(("x", "bias", "A", "B", "C", "D"), grads, strict=True):
        assert torch.equal(value, eager[f"grad_{name}"]), name


class Layer(nn.Module):
    """One layer whose warm-up is plain state, as in the tuner."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight, self.case = case.weight, case
        self.a, self.b, self.c, self.d = (nn.Parameter(f) for f in case.factors)
        self.warmup = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors, scaling = (self.a, self.b, self.c, self.d), self.warmup * 0.7
        y = dual_lora_linear(x, self.weight, self.case.bias, *factors, scaling)
        return dual_lora_delta_linear(x, *factors, scaling, base=y)


def test_compiled_layer_has_no_graph_break_and_follows_the_warm_up() -> None:
    torch._dynamo.reset()
    case = make_case((6,))
    layer, compiles = Layer(case), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiles.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)  # traces by autograd, as inductor does

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for warmup in (0.1, 0.2, 0.3, 0.4, 0.5):
        layer.warmup = warmup
        assert relative_error(compiled(case.x).detach(), layer(case.x).detach()) < 1e-6
    assert len(compiles) <= 2, "the warm-up factor must not compile the model anew at each step"
