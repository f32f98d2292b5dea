"""Files next to a checkpoint's weights: what is loaded is what was hashed, and nothing else decides a reply."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedTokenizerFast

from dual_lora.config import DecodingConfig, ModelConfig, ModelError
from dual_lora.config.compose import compose
from dual_lora.evaluation.generation import generate
from dual_lora.launch import prepare
from dual_lora.models import check_available, fingerprint, hub, load
from dual_lora.models.loading import _tokenizer, require_start_token
from dual_lora.models.sources import weights_folder
from dual_lora.runs import lifecycle
from dual_lora.tasks.base import Head, Prompt
from dual_lora.tasks.encoding import encode, prompt_ids
from tests.small_cells import config

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


def run(results: Path, *words: str) -> dict:
    [prepared] = prepare([config(results, *words)])
    return lifecycle.run(prepared)


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


def text_of_tokenizer(folder: Path, change) -> None:
    """Change tokenizer.json as a dictionary, in place."""
    values = json.loads((folder / "tokenizer.json").read_text())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))


def without_start(values: dict) -> None:
    values["post_processor"] = None


def with_two_starts(values: dict) -> None:
    single = values["post_processor"]["single"]
    values["post_processor"]["single"] = [single[0], *single]


@pytest.mark.parametrize("start", ["<s>", "<|begin_of_text|>"])
@pytest.mark.parametrize("change", [without_start, with_two_starts])
def test_llama_texts_begin_with_the_start_token_once_and_the_record_says_that_it_was_added(change, start, folder):
    """Copies of LLaMA 3 from its first weeks, and conversions of LLaMA 2 from 2023."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<s>", start))
    text_of_tokenizer(folder, change)
    made = run(folder.parent / "results", f"model.path={folder}")
    assert made["status"] == "finished"
    assert made["origin"]["start_token"] == start
    assert f"start token {start} added: the checkpoint's tokenizer leaves it out" in made["scores"]["notes"]
    [cell] = compose(["model=tiny_llama", "task=commonsense", "data.source=sample", f"model.path={folder}"])
    tokenizer = load(cell.model, GENERATE, dtype="float32", seed=0).tokenizer
    [start_id] = tokenizer.convert_tokens_to_ids([start])
    protocol = dataclasses.replace(cell.protocol, loss_on="all")
    row, _ = encode(Prompt("a prompt", " an answer"), tokenizer, protocol, 128)
    for ids in (row["input_ids"], prompt_ids("a prompt", tokenizer), tokenizer("a", "b")["input_ids"]):
        assert ids[0] == start_id != ids[1]
    assert row["input_ids"][-1] == tokenizer.eos_token_id != row["input_ids"][-2]


def test_a_start_token_that_cannot_be_added_is_refused(folder, tiny, monkeypatch):
    text_of_tokenizer(folder, without_start)
    monkeypatch.setattr(PreTrainedTokenizerFast, "add_bos_token", None)
    with pytest.raises(ModelError, match=r"texts do not begin with '<s>' \(once\).*\"add_bos_token\": true"):
        load(at(tiny, folder), GENERATE, dtype="float32", seed=0)


def test_other_models_of_the_architecture_get_no_start_token(folder, tiny):
    """SmolLM2 has LLaMA's architecture and was trained without one."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("<s>", "<|im_start|>"))
    text_of_tokenizer(folder, without_start)
    loaded = load(at(tiny, folder), GENERATE, dtype="float32", seed=0)
    assert (loaded.start_token, loaded.notes) == (None, ())
    assert loaded.tokenizer.bos_token_id not in loaded.tokenizer("a prompt")["input_ids"]


SAID = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}


@pytest.mark.skipif("DUAL_LORA_DATA" not in os.environ, reason="needs LLaMA 2's vocabulary")
@pytest.mark.parametrize(
    ("said", "added"),
    [({**SAID, "add_bos_token": True}, False), (SAID, True), (None, True), ({**SAID, "add_bos_token": False}, True)],
)
def test_llama_2_reads_as_sentencepiece_does_after_its_start_token(said, added, folder, tiny):
    """With the setting, without it as in 2023's conversions, and from the vocabulary alone."""
    from sentencepiece import SentencePieceProcessor

    vocabulary = Path(os.environ["DUAL_LORA_DATA"]) / "tokenizers" / "llama2" / "tokenizer.model"
    for file in folder.glob("tokenizer*"):
        file.unlink()
    shutil.copy(vocabulary, folder)
    if said is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = _tokenizer(folder, "llama")
    notes = require_start_token(tokenizer, tiny)
    assert bool(notes) is added
    pieces = SentencePieceProcessor(model_file=str(vocabulary))
    for text in ("hello a world", "Below is an instruction:\n### Response:\nthe correct answer is true"):
        assert tokenizer(text)["input_ids"] == [1, *pieces.encode(text)]
        assert prompt_ids(text, tokenizer) == [1, *pieces.encode(text)]
