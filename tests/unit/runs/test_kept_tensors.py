"""What autograd keeps, by its own hooks, against the counts of `runs/kept_tensors.py`: families × methods × dtypes.

A GPU's autocast is imitated where a CPU's differs: layer norms, softmax and powers compute in float32, and dropout
keeps a mask of bytes. Attention's own dropout is left out: on a GPU its kernel keeps the state of the random numbers.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dual_lora import methods, models
from dual_lora.config import RunConfig
from dual_lora.config.compose import compose
from dual_lora.models import attention
from dual_lora.models.head import unwrapped
from dual_lora.runs.kept_tensors import Setup, kept_per_batch, kept_per_token
from dual_lora.tasks.base import Head

LENGTH, ROWS = 32, 4
DROPOUT = {"llama": 0.0}
HEADS = {"llama": Head("causal_lm"), "gpt2": Head("causal_lm")}
CASES = [
    *(("llama", name) for name in ("lora", "dora", "dual_lora", "vera", "hira", "loha", "adalora", "randlora", "full")),
    *((family, name) for family in ("gpt2", "roberta", "deberta") for name in ("lora", "dora", "dual_lora", "full")),
    ("roberta", "vera"),
    ("roberta", "bitfit"),
    *(("llama", f"dual_lora_{name}") for name in ("zero_start", "annealed_sign", "normalised")),
]
FORMED = tuple(name for _, name in CASES if name.startswith("dual_lora_"))

# Without autocast.
WIDE = [("llama", "lora", False), ("gpt2", "dual_lora", False), ("roberta", "full", False)]


class Dropped(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, share: float) -> Tensor:
        mask = torch.rand(x.shape) > share
        context.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.saved_tensors[0], None


@contextlib.contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, narrow: bool) -> Iterator[None]:
    norm, softmax, power, attend = F.layer_norm, F.softmax, torch.pow, F.scaled_dot_product_attention

    def wide(value: Any) -> Any:
        return value.float() if narrow and isinstance(value, Tensor) else value

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        with torch.autocast("cpu", enabled=False) if narrow else contextlib.nullcontext():
            return norm(wide(x), shape, wide(weight), wide(bias), eps)

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return Dropped.apply(x, p) if training and p > 0 else x

    with monkeypatch.context() as patch:
        patch.setattr(F, "layer_norm", layer_norm)
        patch.setattr(F, "dropout", dropout)
        patch.setattr(F, "softmax", lambda x, *rest, **named: softmax(wide(x), *rest, **named))
        patch.setattr(torch, "pow", lambda x, exponent: power(wide(x), exponent))
        patch.setattr(F, "scaled_dot_product_attention", lambda *a, **named: attend(*a, **{**named, "dropout_p": 0.0}))
        yield


@functools.cache
def cell(family: str, method: str, layers: int) -> RunConfig:
    heads = 2 if family == "llama" else 6
    sizes = {"hidden_size": 96, "intermediate_size": 208, "num_heads": 6, "num_key_value_heads": heads}
    sizes |= {"num_layers": layers, **({"max_positions": 64} if family == "deberta" else {})}
    task = "e2e" if family in HEADS else "glue/rte"
    words = [f"model.dimensions.{name}={value}" for name, value in sizes.items()]
    words += [f"model=tiny_{family}", f"task={task}", f"method={method}", "data.source=sample"]
    return compose([*words, f"model.dropout={DROPOUT.get(family, 0.1)}"])[0]


def kept(config: RunConfig, rows: int, narrow: bool) -> int:
    """Return the bytes of all storages that a forward pass leaves for the backward pass, parameters not counted."""
    held = "bfloat16" if narrow and config.method.trains == "adapter" else "float32"
    head = HEADS.get(config.model.family, Head("classification", num_labels=2))
    base = models.load(config.model, head, dtype=held, seed=0).model
    model = methods.apply(base, config.method, model_config=config.model, head=head, seed=0).train()
    for layer in model.modules():
        if config.method.settings.get("direction_activation") == "annealed_sign" and hasattr(layer, "temperature"):
            layer.temperature = torch.tensor(0.5)  # as in a training step
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            if tensor.untyped_storage().data_ptr() not in own:
                alive.add(self)

    ids = torch.randint(5, 400, (rows, LENGTH))
    mask: Tensor = torch.ones_like(ids)
    inner = unwrapped(model)
    decodes = head.kind == "causal_lm"
    if not decodes and inner.config._attn_implementation == "sdpa":
        mask = attention.whole_mask(mask)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=narrow),
        attention.without_mask(inner) if decodes else contextlib.nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(Kept, lambda one: one.tensor),
    ):
        called = inner.base_model if decodes else model  # without the output layer
        out = called(input_ids=ids, attention_mask=mask, **({"use_cache": False} if decodes else {}))
        storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in alive}
    del out
    return sum(storages.values())


@pytest.mark.parametrize(("family", "method", "narrow"), [(*case, True) for case in CASES] + WIDE)
def test_counts_are_autograds(family, method, narrow, monkeypatch):
    torch.manual_seed(0)
    with as_on_a_gpu(monkeypatch, narrow):
        found = {
            (layers, rows): kept(cell(family, method, layers), rows, narrow)
            for layers in (1, 2)
            for rows in (ROWS, 2 * ROWS)
        }
    one, two = (found[2, rows] - found[1, rows] for rows in (ROWS, 2 * ROWS))  # of a layer
    token = (two - one) / (ROWS * LENGTH)
    config = cell(family, method, 1)
    adapts = config.method.trains == "adapter"
    run = Setup(
        config.model,
        config.method,
        HEADS.get(family, Head("classification", num_labels=2)),
        models.adapted_layer_shapes(config.model) if adapts else [],
        "bfloat16" if narrow else "float32",
        dropout=DROPOUT.get(family, 0.1),
    )
    # RandLoRA keeps the products with one of its bases in addition, for a layer that is wider than high.
    assert token == pytest.approx(kept_per_token(run, LENGTH), rel=0.02 if method == "randlora" else 1e-9)
    if method in ("vera", "hira", "loha", "randlora", *FORMED):  # where it is large
        assert one - token * ROWS * LENGTH == pytest.approx(kept_per_batch(run), rel=0.02)
