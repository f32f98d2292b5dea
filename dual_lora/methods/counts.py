"""How many parameters a method trains: from its formula (no torch, no weights) and from the model itself."""

from __future__ import annotations

import ast
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dual_lora.config import ConfigError, MethodConfig

if TYPE_CHECKING:
    import torch

LayerShape = tuple[str, int, int]  # module name, in features, out features

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"ceil": np.ceil, "min": np.minimum, "max": np.maximum}
_SHAPE_NAMES = ("i", "o", "total", "biases")


def evaluate(formula: str, values: Mapping[str, Any]) -> Any:
    """Evaluate an arithmetic formula: numbers, + - * / //, ceil, min, max and the names in `values`. Nothing else runs.

    A value may be an array (a column of candidate ranks); the result is then one.

    Raises:
        ConfigError: other syntax, or a name that has no value.
    """
    try:
        return _evaluate(ast.parse(formula, mode="eval").body, values)
    except (SyntaxError, KeyError, TypeError) as error:
        raise ConfigError(
            f"method.parameters={formula!r} cannot be evaluated ({error}). It may use + - * / //, ceil, min, max and "
            f"the numbers {', '.join(sorted(values))}"
        ) from error


def _evaluate(node: ast.AST, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.operand, values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _FUNCTIONS[node.func.id](*(_evaluate(argument, values) for argument in node.args))
    raise SyntaxError(f"{type(node).__name__} is not allowed")


def rank_names(method: MethodConfig) -> list[str]:
    """Return the settings in the formula, which set the size of the adapter, e.g. `["r"]`."""
    if method.parameters is None:
        return []
    try:
        tree = ast.parse(method.parameters, mode="eval")
    except SyntaxError as error:
        raise ConfigError(f"method.parameters={method.parameters!r} is not a formula: {error.msg}") from error
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return sorted(names - set(_FUNCTIONS) - set(_SHAPE_NAMES))


def planned_parameters(
    method: MethodConfig, layer_shapes: Iterable[LayerShape], *, total: int = 0, biases: int = 0
) -> int:
    """Return the number of trainable parameters without the task's head, from the formula of the method.

    Args:
        layer_shapes: name, in and out features of every adapted layer; only an adapter needs them.
        total: parameters of the base model without head, for methods that train everything.
        biases: its bias parameters (`models.count_biases`), for methods that train biases.

    Raises:
        ConfigError: the method has no formula, or the formula cannot be evaluated.
    """
    if method.trains == "nothing":
        return 0
    if method.parameters is None:
        raise ConfigError(
            f"method={method.name} has no formula for its trainable parameters; add `parameters:` to its YAML, in i, "
            'o (a layer\'s in and out features) and its settings, e.g. parameters: "r*(i+o)"'
        )
    if method.trains != "adapter":
        return int(evaluate(method.parameters, {"total": total, "biases": biases}))
    return int(adapter_parameters(method, layer_shapes, {}))


def adapter_parameters(method: MethodConfig, layer_shapes: Iterable[LayerShape], ranks: Mapping[str, Any]) -> Any:
    """Return the parameters of an adapter method at other ranks (numbers, or arrays of candidates)."""
    assert method.parameters is not None
    numbers = {name: value for name, value in method.settings.items() if isinstance(value, (int, float))}
    shapes = Counter((i, o) for _, i, o in layer_shapes)  # a few kinds of layer, many of each
    return sum(
        times * np.rint(evaluate(method.parameters, numbers | dict(ranks) | {"i": i, "o": o}))
        for (i, o), times in shapes.items()
    )


def trainable_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return the trainable parameters of a model with and without its task head.

    The head is what is outside the base model (`base_model_prefix`): a classifier, a pooler.
    The output embedding of a language model belongs to the base.
    """
    from dual_lora.models.head import is_head_parameter

    with_head = without_head = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            size = getattr(parameter, "ds_numel", parameter.numel())  # under ZeRO-3 the tensor itself is empty
            with_head += size
            without_head += 0 if is_head_parameter(model, name) else size
    return with_head, without_head
