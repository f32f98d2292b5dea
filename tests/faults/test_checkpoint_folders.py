"""Files next to a checkpoint's weights: what is loaded is what was hashed, and nothing else decides a reply."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from dual_lora.config import DecodingConfig, ModelConfig, ModelError
from dual_lora.config.compose import compose
from dual_lora.evaluation.generation import generate
from dual_lora.models import check_available, fingerprint, hub, load
from dual_lora.models.sources import weights_folder
from dual_lora.tasks.base import Head

GENERATE = Head("causal_lm")
PROMPTS = ["name : The Mill | food : Thai ||", "name : A ||", "area : riverside | near : The Old Bank ||"]


@pytest.fixture(scope="module")
def tiny() -> ModelConfig:
    [config] = compose(["model=tiny_llama", "task=commonsense", "data.source=sample"])
    return config.model


@pytest.fixture
def folder(tiny: ModelConfig, tmp_path: Path) -> Path:
    loaded = load(tiny, GENERATE, dtype="float32", seed=0)
    loaded.model.save_pretrained(tmp_path / "base")
    loaded.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def at(model: ModelConfig, folder: Path) -> ModelConfig:
    return dataclasses.replace(model, path=str(folder))


def put_adapter(tiny: ModelConfig, folder: Path, base: str) -> None:
    net = load(tiny, GENERATE, dtype="float32", seed=0).model
    adapted = get_peft_model(net, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)


@pytest.mark.parametrize("weights", ["base", "adapter alone", "gguf"])
def test_an_adapter_next_to_base_weights_is_refused(weights, tiny, folder, tmp_path):
    """transformers would apply it, or load the base that it names, under the run id of the plain weights."""
    place = folder
    if weights == "adapter alone":
        place = tmp_path / "adapter"
        put_adapter(tiny, place, str(folder))
    else:
        put_adapter(tiny, folder, str(folder))
    if weights == "gguf":
        (folder / "base.gguf").write_bytes(b"GGUF")
        place = folder / "base.gguf"
    for use in (check_available, fingerprint, lambda model: load(model, GENERATE, dtype="float32", seed=0)):
        with pytest.raises(ModelError, match=r"adapter_config\.json.*evaluate with adapter=FOLDER"):
            use(at(tiny, place))
    (folder / "adapter_config.json").unlink(missing_ok=True)
    check_available(at(tiny, folder))


def test_an_adapter_in_a_repository_of_the_hub_is_refused(tiny, folder, monkeypatch):
    put_adapter(tiny, folder, "another/base")
    model = dataclasses.replace(tiny, source="hub", repository="some/repository", revision="main")
    monkeypatch.setattr(hub, "cached", lambda model: folder)
    for use in (check_available, weights_folder):
        with pytest.raises(ModelError, match=r"adapter_config\.json"):
            use(model)


def test_a_config_that_names_other_weights_is_refused(tiny, folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    with pytest.raises(ModelError, match=r"transformers_weights='other\.safetensors'.*remove the entry"):
        check_available(at(tiny, folder))


def test_shards_of_one_name_in_two_folders_are_both_hashed(tiny, folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a/part.safetensors": names[::2], "b/part.safetensors": names[1::2]}
    for file, held in parts.items():
        (folder / file).parent.mkdir()
        save_file({name: weights[name] for name in held}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = at(tiny, folder)
    before = fingerprint(model)
    assert set(parts) <= before["files"].keys()
    loaded = load(model, GENERATE, dtype="float32", seed=0).model.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    for file, held in parts.items():
        save_file({name: weights[name] + 1 for name in held}, folder / file, {"format": "pt"})
        changed = fingerprint(model)
        assert {name for name in changed["files"] if changed["files"][name] != before["files"][name]} == {file}
        before = changed


@pytest.mark.parametrize("content", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "3"])
def test_a_damaged_index_of_shards_is_named(content, tiny, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json is not a safetensors index"):
        check_available(at(tiny, folder))


SETTINGS = {
    "do_sample": True,
    "temperature": 2.0,
    "top_k": 3,
    "min_p": 0.5,
    "repetition_penalty": 1.9,
    "encoder_repetition_penalty": 3.0,
    "suppress_tokens": "first",
    "begin_suppress_tokens": "first",
    "bad_words_ids": "first",
    "sequence_bias": "first",
    "min_new_tokens": 12,
    "min_length": 40,
    "max_length": 5,
    "max_time": 1e-9,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 5,
    "exponential_decay_length_penalty": [2, 9.0],
    "no_repeat_ngram_size": 1,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "guidance_scale": 3.0,
    "stop_strings": ["e"],
    "cache_implementation": "static",
    "use_cache": False,
    "length_penalty": 9.0,
    "early_stopping": True,
    "num_beams": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "prompt_lookup_num_tokens": 2,
    "eos_token_id": [2, 7],
    "made_up_setting": 3,
}


@pytest.fixture(scope="module")
def plain(tiny):
    """A model, its tokenizer and its replies without settings of its own."""
    loaded = load(tiny, GENERATE, dtype="float32", seed=0)
    loaded.model.generation_config = GenerationConfig()
    decodings = [DecodingConfig(max_new_tokens=12), DecodingConfig(beams=3, max_new_tokens=12)]
    replies = [generate(loaded.model, loaded.tokenizer, PROMPTS, one, batch_size=3) for one in decodings]
    first = loaded.tokenizer(replies[0][0], add_special_tokens=False)["input_ids"][0]
    return loaded, decodings, replies, first


@pytest.mark.parametrize("name", SETTINGS)
def test_no_generation_setting_of_a_checkpoint_changes_a_reply(name, plain, tmp_path):
    loaded, decodings, replies, first = plain
    values = {"bad_words_ids": [[first]], "sequence_bias": [[[first], -50.0]]}
    value = values.get(name, [first]) if SETTINGS[name] == "first" else SETTINGS[name]
    (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, name: value}))
    own = loaded.model.generation_config = GenerationConfig.from_pretrained(tmp_path)
    for decoding, wanted in zip(decodings, replies, strict=True):
        assert generate(loaded.model, loaded.tokenizer, PROMPTS, decoding, batch_size=3) == wanted
    assert loaded.model.generation_config is own, "it is put back, so that an exported checkpoint keeps it"
