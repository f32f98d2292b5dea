"""The random models: the same everywhere, small, in the family's manner, and a head that the seed alone decides."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch

from dual_lora.config import ConfigError
from dual_lora.models import ModelError, fingerprint, load, resolve_dtype
from dual_lora.models.head import is_head_parameter
from dual_lora.tasks.base import Head
from tests.unit.models.shipped import model_config

TINY = ["tiny_llama", "tiny_gpt2", "tiny_roberta", "tiny_deberta"]
CAUSAL = ["tiny_llama", "tiny_gpt2"]
GENERATE = Head("causal_lm")
CLASSIFY = Head("classification", num_labels=3)
REGRESS = Head("classification", num_labels=1, regression=True)
HEADS = ("score.", "classifier.", "pooler.")


def weights(name: str, *, seed: int) -> dict[str, torch.Tensor]:
    return load(model_config(name), CLASSIFY, dtype="float32", seed=seed).model.state_dict()


@pytest.mark.parametrize("name", TINY)
def test_the_seed_draws_the_head_and_nothing_else(name: str) -> None:
    first, again, other = (weights(name, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    different = {key for key in first if not torch.equal(first[key], other[key])}
    assert different
    assert all(key.startswith(HEADS) and key.endswith("weight") for key in different)


@pytest.mark.parametrize("name", TINY)
def test_loading_leaves_the_global_random_state_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(model_config(name), CLASSIFY, dtype="float32", seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", TINY)
def test_the_model_is_in_evaluation_mode(name: str) -> None:
    assert not load(model_config(name), CLASSIFY, dtype="float32", seed=0).model.training


@pytest.mark.parametrize(
    ("name", "given", "differs"),
    [
        ("tiny_gpt2", None, True),  # transformers' GPT-2: 0.1 in embeddings, attention and residuals
        ("tiny_gpt2", 0.0, False),
        ("tiny_llama", None, False),
        ("tiny_llama", 0.3, True),  # of the attention, which is no module
        ("tiny_roberta", None, True),
        ("tiny_roberta", 0.0, False),
        ("tiny_deberta", 0.0, False),
    ],
)
def test_a_models_dropout_acts_in_training_as_it_is_given(name: str, given: float | None, differs: bool) -> None:
    net = load(model_config(name, dropout=given), CLASSIFY, dtype="float32", seed=0).model.train()
    ids = torch.arange(3, 23).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(*(net(input_ids=ids).logits for _ in range(2))) is not differs


@pytest.mark.parametrize("name", TINY)
def test_any_text_goes_through_the_tokenizer_and_back(name: str) -> None:
    head = GENERATE if name in CAUSAL else CLASSIFY
    tokenizer = load(model_config(name), head, dtype="float32", seed=0).tokenizer
    text = "name : Zürich Café | price : £20-25\n\tfamily friendly : yes ✓  <b> </s >"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert len(tokenizer) <= 512


def test_special_tokens_stand_where_the_family_puts_them() -> None:
    def pieces(name: str, *texts: str) -> list[str]:
        tokenizer = load(model_config(name), CLASSIFY, dtype="float32", seed=0).tokenizer
        return tokenizer.convert_ids_to_tokens(tokenizer(*texts).input_ids)

    assert pieces("tiny_gpt2", "a", "b") == ["a", "b"]
    assert pieces("tiny_llama", "a") == ["<s>", "a"]
    assert pieces("tiny_roberta", "a", "b") == ["<s>", "a", "</s>", "</s>", "b", "</s>"]
    assert pieces("tiny_deberta", "a", "b") == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]


@pytest.mark.parametrize(
    ("name", "padding"),
    [("tiny_gpt2", "<|endoftext|>"), ("tiny_llama", "<unk>"), ("tiny_roberta", "<pad>"), ("tiny_deberta", "[PAD]")],
)
def test_padding_is_the_familys_and_stands_right_for_classification(name: str, padding: str) -> None:
    loaded = load(model_config(name), CLASSIFY, dtype="float32", seed=0)
    assert loaded.tokenizer.pad_token == padding
    assert loaded.tokenizer.padding_side == "right"
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_stands_left_for_generation_and_changes_no_output(name: str) -> None:
    loaded = load(model_config(name), GENERATE, dtype="float32", seed=0)
    short, long = "a cheap pub", "a restaurant in the city centre near the river"
    together = loaded.tokenizer([short, long], return_tensors="pt", padding=True)
    alone = loaded.tokenizer([short], return_tensors="pt")
    assert together.attention_mask[0, 0] == 0
    generated = loaded.model.generate(**together, max_new_tokens=6, do_sample=False)
    expected = loaded.model.generate(**alone, max_new_tokens=6, do_sample=False)
    assert generated[0, -6:].tolist() == expected[0, -6:].tolist()


@pytest.mark.parametrize("name", TINY)
def test_padding_changes_no_classification(name: str) -> None:
    loaded = load(model_config(name), CLASSIFY, dtype="float32", seed=0)
    together = loaded.tokenizer(["a pub", "a restaurant near the river"], return_tensors="pt", padding=True)
    alone = loaded.tokenizer(["a pub"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(**together).logits[:1], loaded.model(**alone).logits, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", TINY)
def test_regression_has_one_output_and_a_squared_loss(name: str) -> None:
    loaded = load(model_config(name), REGRESS, dtype="float32", seed=0)
    inputs = loaded.tokenizer(["a pub"], return_tensors="pt")
    with torch.no_grad():
        result = loaded.model(**inputs, labels=torch.tensor([2.5]))
    assert result.logits.shape == (1, 1)
    torch.testing.assert_close(result.loss, (result.logits[0, 0] - 2.5) ** 2)


def test_classifier_dropout_reaches_the_head() -> None:
    roberta = load(model_config("tiny_roberta", classifier_dropout=0.37), CLASSIFY, dtype="float32", seed=0).model
    deberta = load(model_config("tiny_deberta", classifier_dropout=0.37), CLASSIFY, dtype="float32", seed=0).model
    assert roberta.classifier.dropout.p == 0.37
    assert deberta.dropout.p == 0.37
    with pytest.raises(ModelError, match="roberta, bert, deberta"):
        load(model_config("tiny_llama", classifier_dropout=0.37), CLASSIFY, dtype="float32", seed=0)


def test_an_encoder_is_refused_for_generation() -> None:
    with pytest.raises(ConfigError, match=r"tiny_roberta is an encoder.*model=smollm2"):
        load(model_config("tiny_roberta"), GENERATE, dtype="float32", seed=0)


@pytest.mark.parametrize("name", TINY)
def test_the_weights_are_held_in_the_dtype_asked_for(name: str) -> None:
    net = load(model_config(name), CLASSIFY, dtype="bfloat16", seed=0).model
    held: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for key, parameter in net.named_parameters():
        held[is_head_parameter(net, key)].add(parameter.dtype)
    assert held == {True: {torch.float32}, False: {torch.bfloat16}}, "a head is trained, and kept in float32"


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("head", [CLASSIFY, REGRESS], ids=["classify", "regress"])
def test_the_head_answers_in_float32_whatever_the_base_computes_in(name: str, head: Head) -> None:
    """In bfloat16 predictions near 3 lie 1/64 apart, and two sentences that the model tells apart would tie."""
    net = load(model_config(name), head, dtype="bfloat16", seed=0).model
    inputs = load(model_config(name), head, dtype="float32", seed=0).tokenizer(["a pub"], return_tensors="pt")
    with torch.no_grad():
        for context in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
            with context:
                logits = net(**inputs).logits
            assert logits.dtype == torch.float32
            assert not torch.equal(logits, logits.bfloat16().float()), "on the grid of bfloat16"


def test_tiny_models_are_float32_on_every_device() -> None:
    assert {resolve_dtype(model_config(name), device) for name in TINY for device in ("cpu", "cuda")} == {"float32"}


def test_the_fingerprint_tells_random_models_apart() -> None:
    prints = [fingerprint(model_config(name)) for name in TINY]
    assert all(prints[i] != prints[j] for i in range(4) for j in range(i))
    tiny = model_config("tiny_llama")
    deeper = dataclasses.replace(tiny, dimensions=dataclasses.replace(tiny.dimensions, num_layers=3))
    assert fingerprint(deeper) != prints[0]


def test_a_random_model_survives_saving_and_loading_as_a_local_folder(tmp_path: Path) -> None:
    for name in TINY:
        loaded = load(model_config(name, split_fused_attention=False), CLASSIFY, dtype="float32", seed=0)
        folder = tmp_path / name
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        again = load(
            model_config(name, path=str(folder), split_fused_attention=False), CLASSIFY, dtype="float32", seed=0
        )
        for key, value in loaded.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[key]), (name, key)
        text = ("A cheap pub: £5", "near the river")
        assert again.tokenizer(*text).input_ids == loaded.tokenizer(*text).input_ids
