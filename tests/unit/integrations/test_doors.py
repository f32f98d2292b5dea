"""Plugins of other programs, next to stand-ins of these: tests/end_to_end/test_clients.py trains with the real ones.

The stand-ins are what axolotl 0.19 and ms-swift 4.6 call, as their sources say.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from dual_lora import DeltaWarmupCallback, DualLoraConfig
from tests.unit.tuner.tiny_adapted_model import logits, make_base, train_a_little


@dataclasses.dataclass(frozen=True)
class Capabilities:
    name: str
    lora_like: bool = False
    relora: bool = False


class Settings(dict):
    """As axolotl's: a key that is not there is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """Put a module and its packages where an import finds them."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:end]))
        module.__path__ = []
        vars(module).update(members if end == len(parts) else {})
        if end == len(parts) or module.__name__ not in sys.modules:
            monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def axolotl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    stand_in(monkeypatch, "axolotl.integrations.base", AdapterCapabilities=Capabilities, BasePlugin=object)
    module = importlib.import_module("dual_lora.integrations.axolotl")
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    class PeftTuner:
        from_pretrained = PeftModel.from_pretrained

    stand_in(monkeypatch, "swift.tuner_plugin", PeftTuner=PeftTuner, tuners_map={})
    stand_in(monkeypatch, "swift.callbacks.mapping", callbacks_map={})
    stand_in(monkeypatch, "swift.pipelines.train.tuner", get_target_modules=lambda args, model: args.target_modules)
    module = importlib.import_module("dual_lora.integrations.ms_swift")
    yield module
    del sys.modules[module.__name__]


OURS = {"r_magnitude": 3, "r_direction": 2, "alpha": 8, "init_std": 0.2, "warmup_steps": 7}


def test_axolotl_gets_the_adapter_its_callback_and_its_config(axolotl, tmp_path):
    plugin, settings = axolotl.DualLoraPlugin(), Settings(adapter="dual_lora", dual_lora=OURS, lora_dropout=0.0)
    assert [one.name for one in plugin.get_adapter_capabilities()] == ["dual_lora"]
    model, config = plugin.load_adapter(make_base("llama"), settings)
    assert isinstance(config, DualLoraConfig)
    assert (config.r_magnitude, config.task_type) == (3, "CAUSAL_LM")
    assert plugin.load_adapter(None, settings, config_only=True)[0] is None, "preference trainers take the config"
    [callback] = plugin.add_callbacks_pre_trainer(settings, model)
    assert isinstance(callback, DeltaWarmupCallback)
    assert callback.warmup_steps == 7
    train_a_little(model.train())
    model.save_pretrained(tmp_path)
    again = Settings({**settings, "lora_model_dir": str(tmp_path)})
    loaded, saved = plugin.load_adapter(make_base("llama"), again, inference=True)
    assert torch.equal(logits(loaded.eval()), logits(model.eval()))
    assert saved.r_magnitude == 3


def test_axolotl_keeps_its_own_adapters(axolotl):
    plugin, settings = axolotl.DualLoraPlugin(), Settings(adapter="lora", lora_r=8)
    assert plugin.load_adapter(make_base("llama"), settings) is None
    assert plugin.add_callbacks_pre_trainer(settings, None) == []
    merging = {"adapter": "lora", "merge_lora": True}
    plugin.register(merging)
    assert "merge_method" not in merging


def test_axolotl_merges_by_loading_the_adapter(axolotl):
    """Its memory-efficient way looks for lora_A in the file, finds none, and would write the base."""
    merging = {"adapter": "dual_lora", "merge_lora": True, "merge_method": "memory_efficient"}
    axolotl.DualLoraPlugin().register(merging)
    assert merging["merge_method"] == "legacy"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_r": 8}, "lora_r: settings of LoRA"),
        ({"loraplus_lr_ratio": 16}, "loraplus_lr_ratio"),
        ({"peft_use_dora": True, "lora_dropout": 0.1}, "lora_dropout, peft_use_dora"),
        ({"dual_lora": {"r": 8}}, "dual_lora: r is not known"),
        ({"dual_lora": {"alpha": -1}}, "alpha = -1"),
    ],
)
def test_axolotl_settings_without_effect_are_refused(settings, message, axolotl):
    with pytest.raises(ValueError, match=message):
        axolotl.DualLoraPlugin().load_adapter(None, Settings(adapter="dual_lora", **settings), config_only=True)


def arguments(**settings: object) -> SimpleNamespace:
    given = {"lora_rank": 6, "lora_alpha": 12.0, "lora_dropout": 0.0, "lora_bias": "none", "target_regex": None}
    given |= {"target_modules": ["q_proj"], "modules_to_save": [], "task_type": "causal_lm"}
    return SimpleNamespace(**{**given, **settings})


def test_ms_swift_gets_the_adapter_with_loras_budget_and_scale(swift):
    tuner = sys.modules["swift.tuner_plugin"].tuners_map["dual_lora"]
    model = tuner.prepare_model(arguments(), make_base("llama"))
    config = model.peft_config["default"]
    assert (config.r_magnitude, config.r_direction, config.initial_scaling) == (3, 3, 12 / 6)
    assert config.target_modules == {"q_proj"}
    assert config.modules_to_save is None
    callback = sys.modules["swift.callbacks.mapping"].callbacks_map["dual_lora_warmup"]("arguments", "trainer")
    assert isinstance(callback, DeltaWarmupCallback)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 5}, "lora_rank=5"),
        ({"use_dora": True}, "use_dora=True"),
        ({"lorap_lr_ratio": 16}, "lorap_lr_ratio"),
    ],
)
def test_ms_swift_settings_without_effect_are_refused(settings, message, swift):
    with pytest.raises(ValueError, match=message):
        swift.DualLoraTuner.prepare_model(arguments(**settings), make_base("llama"))


def test_ms_swift_finds_the_file_that_the_docs_name():
    origin = importlib.util.find_spec("dual_lora.integrations.ms_swift").origin
    assert Path(origin).name == "ms_swift.py"
