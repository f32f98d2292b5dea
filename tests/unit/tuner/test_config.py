"""The settings of an adapter: wrong ones raise at once and say what to do; the start has the size asked for."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle

import pytest
import torch
from peft import PeftConfig, get_peft_model
from torch import nn

from dual_lora import DualLoraConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r_magnitude": 0}, ["r_magnitude = 0", "at least 1"]),
        ({"r_direction": -2}, ["r_direction = -2", "at least 1"]),
        ({"r_direction": 2.5}, ["r_direction = 2.5", "whole number"]),
        ({"alpha": 0}, ["alpha = 0", "above 0"]),
        ({"rank_pattern": {"q": 0}}, ["rank_pattern['q'], number 1, = 0", "at least 1"]),
        ({"rank_pattern": {"q": [4, 2.5]}}, ["number 2, = 2.5", "whole number"]),
        ({"rank_pattern": {"q": [1, 2, 3]}}, ["rank_pattern['q'] = [1, 2, 3]", "[r_magnitude, r_direction]"]),
        ({"alpha_pattern": {"q": -1}}, ["alpha_pattern['q'] = -1", "above 0"]),
        ({"target_parameters": ["experts.down_proj"]}, ["experts.down_proj", "not bare parameters", "target_modules"]),
        ({"alpha": "32"}, ["alpha = '32'", "number"]),
        ({"alpha": None}, ["alpha = None", "number"]),
        ({"alpha": float("inf")}, ["alpha = inf", "number"]),
        ({"rank_pattern": None}, ["rank_pattern = None", "{'q_proj': 4}"]),
        ({"alpha_pattern": 8}, ["alpha_pattern = 8", "dictionary"]),
        ({"init_weights": "gaussian"}, ["init_weights = 'gaussian'", "True or False", "init_std"]),
        ({"subtract_start": "yes"}, ["subtract_start = 'yes'", "True or False"]),
        ({"modules_to_save": "classifier"}, ["modules_to_save = 'classifier'", "['classifier']"]),
        ({"target_modules": 5}, ["target_modules = 5", "list of names", "regular expression"]),
        ({"dropout": "0.1"}, ["dropout = '0.1'", "number in [0, 1)"]),
        ({"init_std": True}, ["init_std = True", "0.02"]),
        ({"dropout": 1.0}, ["dropout = 1.0", "[0, 1)"]),
        ({"ste": "xnor"}, ["ste='xnor'", "clipped_gradient", "identity", "hard_tanh"]),
        ({"magnitude_activation": "gelu"}, ["magnitude_activation='gelu'", "relu", "identity"]),
        ({"direction_activation": "tanh"}, ["direction_activation='tanh'", "sign", "identity"]),
        ({"direction_activation": "identity", "ste": "hard_tanh"}, ["ste='hard_tanh'", "clipped_gradient", "sign"]),
        ({"bias": "lora_only"}, ["bias='lora_only'", "none", "all", "dual_lora_only"]),
        ({"kernel": "cuda"}, ["kernel='cuda'", "auto", "fused", "generic", "reference"]),
        ({"init_std": "0.02"}, ["init_std = '0.02'", "relative:0.07"]),
        ({"init_std": "relative:"}, ["init_std = 'relative:'", "relative:0.07"]),
        ({"init_std": "relative:-1"}, ["init_std = 'relative:-1'", "above 0"]),
        ({"init_std": "relative:nan"}, ["init_std = 'relative:nan'", "above 0"]),
        ({"init_std": 0}, ["init_std = 0", "above 0"]),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, ["layers_to_transform = [0]", "list of names"]),
        ({"target_modules": ["q"], "layers_pattern": "layers"}, ["layers_pattern = 'layers'", "layers_to_transform"]),
    ],
    ids=str,
)
def test_a_wrong_setting_raises_and_the_message_helps(settings, words):
    with pytest.raises(ValueError, match="=") as error:
        DualLoraConfig(**settings)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_setting_raises_and_the_message_has_the_known_ones():
    with pytest.raises(TypeError, match="unexpected keyword argument 'r_magnitud'; its fields are .*r_magnitude"):
        DualLoraConfig(r_magnitud=4)
    assert list(inspect.signature(DualLoraConfig).parameters)[-1] == "kernel", (
        "a subclass and PEFT read the fields there"
    )


@dataclasses.dataclass
class WithAField(DualLoraConfig):
    more: int = 1


class WithItsOwnInit(DualLoraConfig):
    def __init__(self, **given) -> None:
        super().__init__(r_magnitude=given.pop("rank"), **given)


@pytest.mark.parametrize("config", [DualLoraConfig, WithAField])
def test_a_config_derived_from_it_names_its_fields_too(config):
    with pytest.raises(TypeError, match="argument 'r'; LoRA's r is .*; its fields are .*, kernel") as refused:
        config(r=8)
    assert str(refused.value).endswith(", kernel, more." if config is WithAField else ", kernel.")
    made = config("CAUSAL_LM", r_magnitude=3, target_modules=["q"])
    assert made.task_type == "CAUSAL_LM"
    assert vars(pickle.loads(pickle.dumps(made))) == vars(copy.deepcopy(made)) == vars(made)
    assert vars(dataclasses.replace(made, alpha=5.0)) == vars(made) | {"alpha": 5.0}
    fields = [field.name for field in dataclasses.fields(config)]
    assert list(inspect.signature(config).parameters) == fields
    assert list(inspect.signature(config.__init__).parameters) == ["self", *fields]  # PEFT's form


def test_a_config_with_an_init_of_its_own_is_left_to_it():
    assert WithItsOwnInit(rank=3, alpha=8).r_magnitude == 3


def test_the_names_of_a_lora_are_translated_to_its_parameters_and_scale():
    with pytest.raises(TypeError) as error:
        DualLoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, init_lora_weights="gaussian")
    for word in ("r_magnitude = r_direction = r/2", "alpha = lora_alpha/2", "lora_dropout is dropout", "is init_std"):
        assert word in str(error.value)
    assert DualLoraConfig(r_magnitude=4, r_direction=4, alpha=8).initial_scaling == 16 / 8  # LoRA's lora_alpha / r


def test_a_field_of_a_later_version_is_left_out_with_a_warning(tmp_path):
    DualLoraConfig(r_magnitude=3, rank_pattern={"q": (2, 3)}).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_tomorrow": 1}))
    with pytest.warns(UserWarning, match="of_tomorrow"):
        loaded = PeftConfig.from_pretrained(tmp_path)
    assert (loaded.r_magnitude, loaded.rank_pattern) == (3, {"q": [2, 3]})


def test_the_saved_file_holds_the_method_and_not_how_it_was_computed(tmp_path):
    config = DualLoraConfig(r_magnitude=3, ste="identity", kernel="generic", target_modules=["v", "q"])
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "DUAL_LORA"
    assert saved["target_modules"] == ["q", "v"]  # sorted: equal adapters have equal files
    assert "kernel" not in saved
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, DualLoraConfig)
    assert (loaded.r_magnitude, loaded.ste, loaded.kernel) == (3, "identity", "auto")


@pytest.mark.parametrize("direction", ["sign", "identity"])
@pytest.mark.parametrize("magnitude", ["relu", "identity"])
def test_relative_init_gives_an_update_of_that_relative_size(magnitude, direction):
    torch.manual_seed(0)
    base = nn.Linear(512, 384)
    config = DualLoraConfig(
        target_modules=["layer"],
        init_std="relative:0.07",
        r_magnitude=8,
        r_direction=4,
        magnitude_activation=magnitude,
        direction_activation=direction,
    )
    model = get_peft_model(nn.ModuleDict({"layer": base}), config)
    layer = model.base_model.model["layer"]
    ratio = layer.get_delta_weight("default").norm() / layer.weight.norm()
    # The expectation is exact; one draw of 6000 numbers scatters by a few per cent around it.
    assert ratio.item() == pytest.approx(0.07, rel=0.15)
    sigma = model.base_model.resolved_init_std()["layer"]
    assert torch.cat([f.flatten() for f in layer.factors("default")]).std().item() == pytest.approx(sigma, rel=0.05)


def test_relative_init_follows_the_scale_of_each_weight():
    torch.manual_seed(0)
    layers = nn.ModuleDict({"small": nn.Linear(64, 64), "large": nn.Linear(64, 64)})
    with torch.no_grad():
        layers["large"].weight.copy_(100 * layers["small"].weight)
    config = DualLoraConfig(target_modules=["small", "large"], init_std="relative:0.1")
    sigmas = get_peft_model(layers, config).base_model.resolved_init_std()
    assert sigmas["large"] == pytest.approx(10 * sigmas["small"], rel=1e-5)  # σ² is proportional to the weight


def test_relative_init_of_a_zero_weight_raises():
    base = nn.Linear(4, 4)
    nn.init.zeros_(base.weight)
    config = DualLoraConfig(target_modules=["layer"], init_std="relative:0.1")
    with pytest.raises(ValueError, match="not all zeros"):
        get_peft_model(nn.ModuleDict({"layer": base}), config)


def test_absolute_init_is_gaussian_with_that_sigma_and_follows_the_seed():
    def start(seed: int, dtype: torch.dtype) -> torch.Tensor:
        torch.manual_seed(seed)
        config = DualLoraConfig(target_modules=["layer"], init_std=0.05)
        model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(300, 200)}).to(dtype), config)
        return torch.cat([factor.flatten() for factor in model.base_model.model["layer"].factors("default")])

    factors = start(0, torch.float32)
    assert factors.dtype == torch.float32
    assert factors.std().item() == pytest.approx(0.05, rel=0.03)
    assert abs(factors.mean().item()) < 0.002
    assert torch.equal(factors, start(0, torch.float32))
    assert torch.equal(factors, start(0, torch.bfloat16)), "a half-precision base must not round the factors"
    assert not torch.equal(factors, start(1, torch.float32))
