"""What every method promises. Each test is one promise; `contract:` in a method's YAML names the exceptions."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from dual_lora import methods
from dual_lora.config import ConfigError
from tests.contracts import cells

EXACT = 1e-5  # of float32 logits of order 1, for sums formed in another order
HALF = 0.1  # of the largest logit, for bfloat16 (8 bits) through two layers


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers by name, NaN-safe comparable."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@functools.cache
def base_logits(family: str) -> torch.Tensor:
    return cells.logits(cells.base(family), family)


def at_start(cell: cells.Cell) -> nn.Module:
    """The model as the first training step sees it: with the warm-up of the update at its start, where there is one."""
    model = cell.fresh()
    if cell.config.delta_warmup:
        from dual_lora import set_delta_warmup

        set_delta_warmup(model, 0.0)
    return model


def layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def test_applies(cell):
    """The method can be put on the family at all."""
    cell.fresh()


def test_starts_at_the_base(cell):
    torch.testing.assert_close(cells.logits(at_start(cell), cell.family), base_logits(cell.family), rtol=0, atol=EXACT)


def test_training_moves_every_trained_tensor_and_no_other(training_cell):
    before, after = tensors(training_cell.fresh()), cells.trained_copy(training_cell)
    trained = {name for name, parameter in after.named_parameters() if parameter.requires_grad}
    still = sorted(name for name in trained if torch.equal(before[name], dict(after.named_parameters())[name]))
    moved = sorted(name for name, now in tensors(after).items() if name not in trained and not now.equal(before[name]))
    assert trained
    assert not still, f"did not move: {still}"
    assert not moved, f"frozen, but moved: {moved}"


def test_gradient_reaches_every_trained_tensor(training_cell):
    model = cells.trained_copy(training_cell).train()
    model.zero_grad()
    model(**cells.batch(training_cell.family)).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    reached = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not without, f"no gradient: {without}"
    assert not reached, f"frozen, but with a gradient: {reached}"


def test_layer_adds_the_update_it_reports(adapter_cell):
    model = cells.trained_copy(adapter_cell)
    for name, layer in layers(model).items():
        plain = layer.get_base_layer()
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            delta = layer.get_delta_weight("default")
            expected = plain(x) + (x @ delta if isinstance(plain, Conv1D) else x @ delta.T)
            assert (layer(x) - expected).abs().max() <= EXACT * max(1.0, expected.abs().max().item()), name


def test_merged_equals_unmerged(adapter_cell):
    model = cells.trained_copy(adapter_cell)
    with torch.no_grad():
        model.merge_adapter()
    difference = (cells.logits(model, adapter_cell.family) - cells.trained_logits(adapter_cell)).abs().max()
    assert difference <= EXACT


def test_merged_equals_unmerged_in_bfloat16(adapter_cell):
    model = cells.trained_copy(adapter_cell, torch.bfloat16)
    unmerged = cells.logits(model, adapter_cell.family)
    with methods.merged(model):
        difference = (cells.logits(model, adapter_cell.family) - unmerged).abs().max()
    assert difference <= HALF * unmerged.abs().max()


def test_unmerge_restores_every_bit(adapter_cell):
    """PEFT's own unmerge in bfloat16, where subtracting the update again shows."""
    model = cells.trained_copy(adapter_cell, torch.bfloat16)
    before = tensors(model)
    with torch.no_grad():
        model.merge_adapter()
        model.unmerge_adapter()
    assert [name for name, tensor in tensors(model).items() if not tensor.equal(before[name])] == []


def test_unmerge_restores_within_rounding(adapter_cell):
    model = cells.trained_copy(adapter_cell)
    before = tensors(model)
    with torch.no_grad():
        model.merge_adapter()
        model.unmerge_adapter()
    for name, tensor in tensors(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=EXACT, atol=EXACT)


def test_evaluating_merged_restores_every_bit(cell):
    """`methods.merged`, which evaluation uses, for every method in bfloat16."""
    model = cells.trained_copy(cell, torch.bfloat16)
    before = tensors(model)
    with methods.merged(model):
        cells.logits(model, cell.family)
    assert [name for name, tensor in tensors(model).items() if not tensor.equal(before[name])] == []


def test_saved_adapter_loads_to_the_same_output(adapter_cell, tmp_path):
    cells.trained_copy(adapter_cell).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")), "weights are saved as safetensors only"
    loaded = PeftModel.from_pretrained(cells.base(adapter_cell.family), tmp_path)
    torch.testing.assert_close(
        cells.logits(loaded, adapter_cell.family), cells.trained_logits(adapter_cell), rtol=0, atol=EXACT
    )


def test_exported_model_gives_the_same_output(cell, tmp_path):
    """Merged, unloaded, saved and loaded again as a plain transformers model."""
    plain = methods.export_merged(cells.trained_copy(cell))
    assert not layers(plain)
    plain.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if cells.head(cell.family).kind == "causal_lm" else AutoModelForSequenceClassification
    loaded = auto.from_pretrained(Path(tmp_path))
    torch.testing.assert_close(cells.logits(loaded, cell.family), cells.trained_logits(cell), rtol=0, atol=EXACT)


def test_selected_weights_come_back(training_cell):
    """`trainable_state`, kept for the best checkpoint, brings a fresh model to the trained output."""
    state = methods.trainable_state(cells.trained_copy(training_cell))
    fresh = training_cell.fresh()
    methods.load_trainable_state(fresh, state)
    torch.testing.assert_close(
        cells.logits(fresh, training_cell.family), cells.trained_logits(training_cell), rtol=0, atol=EXACT
    )


def test_disabling_the_adapter_gives_the_base(adapter_cell):
    model = cells.trained_copy(adapter_cell)
    with model.disable_adapter():
        disabled = cells.logits(model, adapter_cell.family)
    assert torch.equal(disabled, base_logits(adapter_cell.family))


def test_target_that_matches_nothing_is_refused(adapter_cell):
    wrong = adapter_cell.changed(target_modules=[cells.TARGETS[adapter_cell.family][0], "no_such_layer"])
    with pytest.raises(ConfigError, match=r"'no_such_layer' matches no layer of model=contract_\w+\. Its"):
        wrong.fresh()


def test_count_equals_the_formula(cell):
    model = cell.fresh()
    with_head, without_head = methods.trainable_parameters(model)
    shapes = [(name, layer.in_features, layer.out_features) for name, layer in layers(model).items()]
    plain = cells.base(cell.family)
    heads = ("classifier.", "pooler.")
    sizes = {name: tensor.numel() for name, tensor in plain.named_parameters()}
    body = {name: size for name, size in sizes.items() if not name.startswith(heads)}
    planned = methods.planned_parameters(
        cell.config,
        shapes,
        total=sum(body.values()),
        biases=sum(size for name, size in body.items() if name.endswith("bias")),
    )
    head_size = 0 if cell.config.trains == "nothing" else sum(sizes.values()) - sum(body.values())
    assert (with_head, without_head) == (planned + head_size, planned)


def test_one_seed_repeats(cell):
    first, second = tensors(cell.fresh(seed=5)), tensors(cell.fresh(seed=5))
    assert [name for name in first if not first[name].equal(second[name])] == []


def test_two_seeds_start_differently(cell):
    first, second = tensors(cell.fresh(seed=5)), tensors(cell.fresh(seed=6))
    assert [name for name in first if not first[name].equal(second[name])]


def test_applying_leaves_the_random_state_alone(cell):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    cell.fresh()
    assert torch.equal(torch.rand(3), expected)


def test_dropout_acts_in_training_only(dropout_cell, setting):
    cell = dropout_cell.changed(**{setting: 0.5})
    model = cell.fresh()
    methods.load_trainable_state(model, methods.trainable_state(cells.trained_copy(dropout_cell)))
    assert torch.equal(cells.logits(model, cell.family), cells.logits(model, cell.family))
    torch.testing.assert_close(cells.logits(model, cell.family), cells.trained_logits(dropout_cell), rtol=0, atol=EXACT)
    model.train()
    inputs = cells.batch(cell.family)
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
