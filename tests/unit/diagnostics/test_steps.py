"""What one step does to an update, and what full fine-tuning does: against NumPy and autograd in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dual_lora import set_delta_warmup
from dual_lora.diagnostics import DiagnosticsCallback, adapted_layers, trained_layers
from dual_lora.diagnostics.products import ClipWatch, copied_factors, lowering_share, step_parts
from dual_lora.diagnostics.updates import whole_update
from tests.unit.diagnostics.test_diagnostics import dual, llama, rows, train

LAYER = "model.layers.0.self_attn.q_proj"
ACTIVATIONS = {
    "relu": lambda m: np.maximum(m, 0),
    "sign": lambda p: np.where(p > 0, 1.0, -1.0),
    "identity": lambda p: p,
}


def in_numpy(factors) -> list[np.ndarray]:
    return [factor.detach().double().numpy() for factor in factors]


def by_entry(before, after, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """The change of each entry, in the first matrix where its sign stayed, in the second where it flipped."""
    (u, v), (u1, v1) = [(np.maximum(b @ a, 0), np.where(d @ c > 0, 1.0, -1.0)) for a, b, c, d in (before, after)]
    change, flipped = scaling * (u1 * v1 - u * v), v != v1
    return np.where(flipped, 0, change), np.where(flipped, change, 0)


def moved(layer, size: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for factor in layer.factors("default"):
            factor += size * torch.randn(factor.shape, generator=generator)


def test_a_step_is_split_by_entries_whose_sign_flipped():
    model = dual()
    set_delta_warmup(model, 0.25)  # sizes are those at w = 1
    layer = adapted_layers(model)[LAYER]
    before = copied_factors(layer)
    moved(layer)
    wanted = by_entry(in_numpy(before), in_numpy(layer.factors("default")), layer.scaling["default"])
    found = step_parts(before, layer)
    assert 0.05 < (wanted[1] != 0).mean() < 0.5
    for part, own in zip(found, wanted, strict=True):
        np.testing.assert_allclose(part.double().numpy(), own, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("magnitude", "direction"), [("relu", "identity"), ("identity", "sign"), ("identity", "identity")]
)
def test_parts_of_other_forms_are_at_the_means_and_add_up(magnitude, direction):
    layer = adapted_layers(dual(magnitude_activation=magnitude, direction_activation=direction))[LAYER]
    before, start = copied_factors(layer), whole_update(layer)
    moved(layer)
    found = step_parts(before, layer)
    torch.testing.assert_close(found[0] + found[1], whole_update(layer) - start, rtol=1e-3, atol=1e-7)
    one, other = in_numpy(before), in_numpy(layer.factors("default"))
    (u, v), (u1, v1) = [(ACTIVATIONS[magnitude](b @ a), ACTIVATIONS[direction](d @ c)) for a, b, c, d in (one, other)]
    scaling = layer.scaling["default"]
    np.testing.assert_allclose(found[0].numpy(), scaling * (u1 - u) * (v + v1) / 2, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(found[1].numpy(), scaling * (u + u1) / 2 * (v1 - v), rtol=1e-3, atol=1e-8)


def test_entries_that_lower_the_loss_count_by_how_far_they_move():
    change = torch.tensor([[1.0, -3.0], [0.0, 4.0]])
    gradient = torch.tensor([[-1e-9, -5.0], [7.0, -2e-8]])  # lower, raise, nothing, lower
    assert lowering_share(change, gradient) == pytest.approx(5 / 8)
    assert lowering_share(torch.zeros(2, 2), gradient) is None


def test_the_watched_gradient_is_that_of_all_micro_batches():
    layer = adapted_layers(dual().train())[LAYER]
    watch = ClipWatch(layer, keep_gradient=True)
    inputs = [torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    weight = (layer.get_base_layer().weight + whole_update(layer)).detach().double().requires_grad_()
    for x in inputs:
        layer(x.requires_grad_()).square().sum().backward()
        (x.detach().double() @ weight.T).square().sum().backward()
    watch.remove()
    torch.testing.assert_close(watch.gradient.double(), weight.grad, rtol=1e-4, atol=1e-4)


class Followed(DiagnosticsCallback):
    """Notes the factors of each step's start and end, and the gradient of all rows by autograd on a plain model."""

    def __init__(self, model: nn.Module, layer, path: Path) -> None:
        super().__init__(path)
        self.model, self.layer, self.steps = model, layer, []
        self.plain = llama().double()
        self.rows = torch.stack([row["input_ids"] for row in rows()])

    def on_step_begin(self, *args, **kwargs):
        super().on_step_begin(*args, **kwargs)
        for name, layer in adapted_layers(self.model).items():
            weight = layer.get_base_layer().weight + whole_update(layer)
            self.plain.get_submodule(name).weight.data = weight.detach().double()
        self.plain.zero_grad()
        self.plain(input_ids=self.rows, labels=self.rows).loss.backward()
        gradient = self.plain.get_submodule(LAYER).weight.grad.numpy().copy()
        self.steps.append([in_numpy(self.layer.factors("default")), gradient])

    def on_step_end(self, *args, **kwargs):
        super().on_step_end(*args, **kwargs)
        self.steps[-1].append(in_numpy(self.layer.factors("default")))


def test_the_series_of_a_training_say_what_each_step_did(tmp_path):
    model = dual()
    layer = adapted_layers(model)[LAYER]
    followed = Followed(model, layer, tmp_path / "diagnostics.json")
    train(model, tmp_path / "run", followed, per_device_train_batch_size=24, gradient_accumulation_steps=2)
    series = followed.report()["layers"][LAYER]["series"]
    assert len(followed.steps) == 6
    norm = float(layer.get_base_layer().weight.norm())
    for place, (before, gradient, after) in enumerate(followed.steps):
        parts = by_entry(before, after, layer.scaling["default"])
        for kind, part in zip(("magnitude", "flip"), parts, strict=True):
            assert series[f"{kind}_step"][place] == pytest.approx(np.linalg.norm(part) / norm, rel=1e-3, abs=1e-9)
            size = np.abs(part).sum()
            wanted = np.abs(part)[part * gradient < 0].sum() / size if size else None
            assert series[f"{kind}_descent"][place] == (wanted if wanted is None else pytest.approx(wanted, abs=2e-3))
    assert series["flip_descent"][0] is None, "w = 0 at the first step: nothing moves"
    assert series["flip_step"][2] > 0
    assert series["magnitude_descent"][2] > 0.5, "a step goes down"


def test_full_fine_tuning_is_followed_and_compared_with_another_seed(tmp_path):
    model, other = llama(), llama()
    start = {name: value.detach().double().numpy().copy() for name, value in model.named_parameters()}
    with torch.no_grad():
        for value in other.parameters():
            value += 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    save_file({name: value.contiguous() for name, value in other.state_dict().items()}, tmp_path / "other.safetensors")
    layers = trained_layers(model, ("q_proj", "up_proj"))
    assert layers.keys() == adapted_layers(dual()).keys()
    callback = DiagnosticsCallback(tmp_path / "diagnostics.json", tmp_path / "other.safetensors", layers)
    train(model, tmp_path / "run", callback)
    report = callback.report()
    for name, entry in report["layers"].items():
        key = f"{name}.weight"
        mine = model.get_parameter(key).detach().double().numpy() - start[key]
        its = other.get_parameter(key).detach().double().numpy() - start[key]
        assert entry["start_ratio"] == 0
        size = np.linalg.norm(start[key])
        assert entry["series"]["update_ratio"][-1] == pytest.approx(np.linalg.norm(mine) / size, rel=1e-3)
        assert set(entry["series"]) == {"update_ratio", "gradient_rms_weight"}
        values = np.linalg.svd(mine, compute_uv=False)
        assert entry["final"]["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=2e-3)
        cosine = (mine * its).sum() / np.linalg.norm(mine) / np.linalg.norm(its)
        assert entry["agreement"]["cosine"] == pytest.approx(cosine, abs=2e-4)
    for checkpoint in (tmp_path / "run").glob("checkpoint-6/*"):
        checkpoint.unlink()
    (tmp_path / "run" / "checkpoint-6").rmdir()
    again = llama()
    layers = trained_layers(again, ("q_proj", "up_proj"))
    resumed = DiagnosticsCallback(tmp_path / "diagnostics.json", tmp_path / "other.safetensors", layers)
    train(again, tmp_path / "run", resumed, resume=True)
    assert resumed.report() == report, "a resumed training is measured from its first start"
