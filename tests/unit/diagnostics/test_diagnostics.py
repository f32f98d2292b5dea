"""Diagnostics say what the matrices say: against numbers worked out here, and over a real training with a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dual_lora import DeltaWarmupCallback, DualLoraConfig
from dual_lora.commands import main
from dual_lora.diagnostics import DiagnosticsCallback, adapted_layers, agreement, numerical_rank, stable_rank
from dual_lora.diagnostics.callback import compare_with_full, final_measures
from dual_lora.diagnostics.measures import singular_values
from dual_lora.diagnostics.products import ClipWatch, flipped_share, product_measures, signs
from dual_lora.diagnostics.updates import whole_update
from dual_lora.tuner.factor import FACTORS


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=40,
            initializer_range=0.1,
        )
    )


def dual(**settings) -> nn.Module:
    config = DualLoraConfig(**{"r_magnitude": 4, "r_direction": 4, "target_modules": ["q_proj", "up_proj"], **settings})
    model = llama()
    torch.manual_seed(1)
    return get_peft_model(model, config)


def rows(count: int = 48) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(2, 40, (count, 10), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": row, "labels": row} for row in tokens]


def train(model: nn.Module, folder: Path, callback: DiagnosticsCallback, resume: bool = False, **arguments) -> Trainer:
    settings = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
        "save_steps": 3, "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 0, "max_grad_norm": 0.0,
    }  # fmt: skip
    dual_model = "dual_lora" in str(type(model.base_model)).lower()
    callbacks = [*([DeltaWarmupCallback(2)] if dual_model else []), callback]
    trainer = Trainer(
        model=model, args=TrainingArguments(**(settings | arguments)), train_dataset=rows(), callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_stable_and_numerical_rank_of_known_matrices():
    diagonal = torch.diag(torch.tensor([2.0, 2.0, 1.0, 0.0]))
    values = singular_values(diagonal)
    assert numerical_rank(values, (4, 4)) == 3
    assert stable_rank(values) == pytest.approx((4 + 4 + 1) / 4)
    zero = singular_values(torch.zeros(3, 5))
    assert (numerical_rank(zero, (3, 5)), stable_rank(zero)) == (0, 0.0)


def test_agreement_of_equal_opposite_and_unrelated_updates():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(64, 48, generator=generator), torch.randn(64, 48, generator=generator)
    same = agreement(one, 3 * one, directions=8)
    assert same == pytest.approx({"cosine": 1.0, "sign_agreement": 1.0, "subspace_overlap": 1.0}, abs=1e-4)
    opposite = agreement(one, -one, directions=8)
    assert (opposite["cosine"], opposite["sign_agreement"]) == (pytest.approx(-1.0), 0.0)
    unrelated = agreement(one, other, directions=8)
    assert abs(unrelated["cosine"]) < 0.1
    assert unrelated["sign_agreement"] == pytest.approx(0.5, abs=0.05)
    assert unrelated["subspace_overlap"] == pytest.approx((8 / 64 + 8 / 48) / 2, abs=0.08)


@pytest.mark.parametrize("use_dora", [False, True])
def test_whole_update_is_merged_minus_base_and_leaves_the_base_alone(use_dora):
    model = get_peft_model(llama().bfloat16(), LoraConfig(r=4, target_modules=["q_proj"], use_dora=use_dora))
    layer = next(iter(adapted_layers(model).values()))
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    base = layer.get_base_layer().weight
    before = base.detach().clone()
    update = whole_update(layer)
    assert base.equal(before)
    assert base.dtype == torch.bfloat16
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    layer.float()
    with torch.no_grad():
        expected = layer(x) - x @ before.float().T
    torch.testing.assert_close(x @ update.T, expected, rtol=1e-3, atol=1e-3)


def test_product_measures_are_those_of_the_products():
    layer = next(iter(adapted_layers(dual()).values()))
    a, b, c, d = (factor.detach().double() for factor in layer.factors("default"))
    measured = product_measures(layer)
    assert measured["zero_share"] == pytest.approx(((b @ a) <= 0).double().mean().item(), abs=1e-6)
    assert measured["positive_share"] == pytest.approx(((d @ c) > 0).double().mean().item(), abs=1e-6)
    assert measured["max_abs_p"] == pytest.approx((d @ c).abs().max().item(), rel=1e-5)


def test_sign_flips_are_counted_one_by_one():
    layer = next(iter(adapted_layers(dual()).values()))
    before = signs(layer)
    with torch.no_grad():
        layer.factors("default")[3][0] *= -1  # flips the signs of one row of P
    entries = layer.in_features * layer.out_features
    assert flipped_share(before, signs(layer), entries) == pytest.approx(1 / layer.out_features)


@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_clip_watch_sees_what_the_clip_does(factor):
    """Q from its definition in float64, on one layer with one input."""
    model = dual(init_std=0.3).train()
    layer = adapted_layers(model)["model.layers.0.self_attn.q_proj"]
    watch = ClipWatch(layer)
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(4))
    out_gradient = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(5)) * factor
    (layer(x.requires_grad_()) * out_gradient).sum().backward()
    a, b, _, _ = (parameter.detach().double() for parameter in layer.factors("default"))
    weight_gradient = out_gradient.double().flatten(0, 1).T @ x.detach().double().flatten(0, 1)
    q = (layer.scaling["default"] * weight_gradient * (b @ a).relu()).abs()
    measured = watch.remove()
    assert measured["clipped_share"] == pytest.approx((q > 1).double().mean().item(), abs=1e-4)
    assert measured["max_abs_q"] == pytest.approx(q.max().item(), rel=1e-4)


def test_a_training_is_followed_and_its_numbers_are_not_changed(tmp_path):
    """Every series has one value per step that was looked at, and the training ends where it would without."""
    plain, watched = dual(), dual()
    silent = DiagnosticsCallback(tmp_path / "silent.json")
    silent.on_train_begin = lambda *args, **kwargs: None  # type: ignore[method-assign]
    train(plain, tmp_path / "plain", silent)
    callback = DiagnosticsCallback(tmp_path / "diagnostics.json")
    train(watched, tmp_path / "watched", callback)
    for (name, one), (_, other) in zip(plain.named_parameters(), watched.named_parameters(), strict=True):
        assert one.equal(other), name
    report = callback.report()
    assert report["steps"] == [1, 2, 3, 4, 5, 6]
    assert report["clip_acted"] is False
    assert len(report["layers"]) == 4
    for entry in report["layers"].values():
        assert entry["init_std"] == 0.02
        assert entry["start_ratio"] > 0
        expected = {"update_ratio", "zero_share", "positive_share", "max_abs_p", "clipped_share", "max_abs_q"}
        gradients = {f"gradient_rms_{name}" for name in FACTORS}
        step = {"flipped_share", *(f"{kind}_{what}" for kind in ("magnitude", "flip") for what in ("step", "descent"))}
        assert set(entry["series"]) == expected | gradients | step
        assert all(len(values) == 6 for values in entry["series"].values())
        assert entry["series"][f"gradient_rms_{FACTORS[0]}"][0] == 0, "w = 0 at the first step: no gradient"
        assert entry["series"][f"gradient_rms_{FACTORS[0]}"][5] > 0
        assert entry["final"]["untrained_numerical_rank"] > 8, "full rank before any training"


def test_a_resumed_training_has_the_whole_series(tmp_path):
    whole = DiagnosticsCallback(tmp_path / "whole.json")
    train(dual(), tmp_path / "run", whole)
    (tmp_path / "resumed.json").write_text((tmp_path / "whole.json").read_text())
    for checkpoint in (tmp_path / "run").glob("checkpoint-6/*"):
        checkpoint.unlink()
    (tmp_path / "run" / "checkpoint-6").rmdir()
    resumed = DiagnosticsCallback(tmp_path / "resumed.json")
    train(dual(), tmp_path / "run", resumed, resume=True)
    assert resumed.report() == whole.report()


def test_clip_that_acted_is_marked(tmp_path):
    callback = DiagnosticsCallback(tmp_path / "diagnostics.json")
    model = dual(init_std=2.0)
    with torch.no_grad():
        model.get_base_model().lm_head.weight.mul_(1e4)  # a huge loss gradient
    train(model, tmp_path / "run", callback)
    assert callback.report()["clip_acted"] is True


def test_other_methods_are_followed_too(tmp_path):
    callback = DiagnosticsCallback(tmp_path / "diagnostics.json")
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    train(model, tmp_path / "run", callback)
    entry = callback.report()["layers"]["model.layers.0.self_attn.q_proj"]
    assert entry["start_ratio"] == 0
    assert set(entry["series"]) == {"update_ratio", "gradient_rms_lora_A", "gradient_rms_lora_B"}
    assert 0 < entry["final"]["numerical_rank"] <= 4


def test_agreement_with_a_full_fine_tuning_of_the_same_cell(tmp_path):
    """A full fine-tuning that moved exactly as the adapter agrees fully."""
    model = dual()
    layers = adapted_layers(model)
    weights = {
        f"{name}.weight": (layer.get_base_layer().weight + whole_update(layer)).detach()
        for name, layer in layers.items()
    }
    save_file(weights, tmp_path / "full.safetensors")
    found = compare_with_full(layers, tmp_path / "full.safetensors", list(layers))
    assert found.keys() == layers.keys()
    for values in found.values():
        assert values["cosine"] == pytest.approx(1, abs=1e-3)
        assert values["sign_agreement"] == pytest.approx(1, abs=1e-2)


def test_untrained_control_has_the_rank_of_the_parametrisation():
    """ReLU(BA) * Sign(DC) of Gaussian factors has full rank; without the nonlinearities at most r1 * r2."""
    layer = next(iter(adapted_layers(dual()).values()))
    assert final_measures(layer)["untrained_numerical_rank"] == 32
    plain = dual(magnitude_activation="identity", direction_activation="identity", r_magnitude=2, r_direction=2)
    measured = final_measures(next(iter(adapted_layers(plain).values())))
    assert measured["untrained_numerical_rank"] == measured["numerical_rank"] == 4
    assert math.isfinite(measured["untrained_stable_rank"])


def test_a_saved_adapter_is_analyzed_from_its_files(tmp_path, capsys):
    """`run.py analyze` gives the numbers that the model in memory has."""
    base, model = llama(), dual()
    base.save_pretrained(tmp_path / "base")
    train(model, tmp_path / "run", DiagnosticsCallback(tmp_path / "diagnostics.json"), save_strategy="no")
    model.save_pretrained(tmp_path / "adapter")
    full = {f"{name}.weight": layer.get_base_layer().weight + 1 for name, layer in adapted_layers(model).items()}
    save_file(full, tmp_path / "full.safetensors")
    arguments = [tmp_path / "adapter", "--base", tmp_path / "base", "--full", tmp_path / "full.safetensors"]
    assert main([str(item) for item in ["analyze", *arguments, "--output", tmp_path / "numbers.json"]]) == 0
    shown = capsys.readouterr().out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers.keys() == adapted_layers(model).keys()
    for name, layer in adapted_layers(model).items():
        assert name in shown
        expected = float(whole_update(layer).norm() / layer.get_base_layer().weight.norm())
        assert numbers[name]["update_ratio"] == pytest.approx(expected, rel=1e-4)
        assert numbers[name]["zero_share"] == pytest.approx(product_measures(layer)["zero_share"])
        assert numbers[name]["untrained_numerical_rank"] == 32
        assert -1 <= numbers[name]["cosine"] <= 1


def test_a_folder_without_an_adapter_is_refused(tmp_path, capsys):
    assert main(["analyze", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "neither a run folder" in said
    assert "results/runs/RUN_ID, as long as its weights are there" in said
