"""Passes in few shapes: the numbers of ordinary ones, and as graphs the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaForSequenceClassification

from dual_lora.evaluation import classification
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.evaluation.passes import Passes, passes_for
from dual_lora.evaluation.ranking import rank
from dual_lora.evaluation.validation import losses
from dual_lora.models import attention
from dual_lora.training.recorders import Recorder, on_own_stream
from tests.unit.evaluation.test_ranking import CANDIDATES, PROMPTS, direct
from tests.unit.evaluation.test_static_decoding import Kept
from tests.unit.tiny_text_model import SENTENCES, build_gpt2, build_llama, build_tokenizer

BUILDS = [build_llama, build_gpt2]
TIMES = 8  # each question: shapes come again, with the candidates in another order
QUESTIONS = [
    (prompt, texts[::-1] if time % 3 == 1 else texts)
    for time in range(TIMES)
    for prompt, texts in zip(PROMPTS, CANDIDATES, strict=True)
]


def ranked(model: Any, passes: Passes) -> list[list[float]]:
    prompts, candidates = zip(*QUESTIONS, strict=True)
    return rank(model, build_tokenizer(), prompts, candidates, batch_size=6, passes=passes)


def validated(model: Any, passes: Passes) -> Any:
    tokenizer = build_tokenizer(pad_token="<pad>")
    rows = []
    for number, text in enumerate(SENTENCES * TIMES):
        ids = tokenizer(text)["input_ids"][: 5 + 3 * number]
        labels = [-100] * 3 + ids[3:]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return losses(model, rows, Collator(tokenizer, few_shapes=passes.few_shapes), batch_tokens=128, passes=passes)


def classifier() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = RobertaConfig(**shape, vocab_size=400, max_position_embeddings=80, num_labels=3, pad_token_id=1)
    return RobertaForSequenceClassification(config).eval()


def predicted(model: Any, passes: Passes, epochs: int = 4) -> list[np.ndarray]:
    """Predict after each of some epochs, between which the weights change where they are."""
    tokenizer = build_tokenizer(pad_token="<pad>")
    rows = [tokenizer(text[: 30 + 9 * n]) | {"labels": 0} for n, text in enumerate(SENTENCES)]
    rows = [{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in rows]
    collator = classification.Collator(tokenizer, few_shapes=passes.few_shapes)
    computed = classification.logits_of(model, None, passes)
    found = []
    for _ in range(epochs):
        found.append(classification.predict(model, collator, rows, 2, computed=computed))
        with torch.no_grad():
            model.classifier.dense.weight.mul_(1.5)
    return found


@pytest.mark.parametrize("build", BUILDS)
def test_candidates_in_few_shapes_have_their_likelihoods(build: Callable[[Any], Any]) -> None:
    tokenizer = build_tokenizer()
    model = build(tokenizer)
    without, kept = Passes(few_shapes=True), Kept()
    graphed = Passes(kept, few_shapes=True)
    values = ranked(model, without)
    for (prompt, texts), row in zip(QUESTIONS, values, strict=True):
        assert row == pytest.approx([direct(model, tokenizer, prompt, text) for text in texts], abs=2e-4)
    assert ranked(model, graphed) == values
    assert graphed.report()["replays"] > TIMES
    assert graphed.report() | without.report() == without.report() | {"eager": without.report()["eager"]}
    assert len({tuple(values) for values in kept.logits}) > 4, "replays of one shape, of different batches"


def test_padding_of_candidates_needs_no_position() -> None:
    """A row is padded past the model's positions, of which its tokens take the last one."""
    tokenizer = build_tokenizer()
    longest = max(
        len(tokenizer(prompt + text)["input_ids"])
        for prompt, texts in zip(PROMPTS, CANDIDATES, strict=True)
        for text in texts
    )
    model = build_gpt2(tokenizer, positions=longest)
    assert longest % 8
    expected = rank(model, tokenizer, PROMPTS, CANDIDATES, batch_size=6)
    found = rank(model, tokenizer, PROMPTS, CANDIDATES, batch_size=6, passes=Passes(few_shapes=True))
    for row, others in zip(found, expected, strict=True):
        assert row == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("build", BUILDS)
def test_validation_losses_in_few_shapes_are_the_ones_of_plain_batches(build: Callable[[Any], Any]) -> None:
    model = build(build_tokenizer(pad_token="<pad>"))
    plain, each = validated(model, Passes())
    few, found = validated(model, Passes(few_shapes=True))
    assert few == pytest.approx(plain, rel=1e-5)
    assert [tokens for _, tokens in found] == [tokens for _, tokens in each]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in each], rel=1e-4)
    graphed = Passes(Kept(), few_shapes=True)
    assert validated(model, graphed) == (few, found)
    assert graphed.report()["replays"] > 2
    assert model.config._attn_implementation == "sdpa"


def test_epochs_are_predicted_with_the_weights_of_now() -> None:
    plain, few = predicted(classifier(), Passes()), predicted(classifier(), Passes(few_shapes=True))
    graphed = Passes(Kept(), few_shapes=True)
    found = predicted(classifier(), graphed)
    assert graphed.report() == {"captures": 2, "replays": 6, "eager": 2, "reason": None}
    for values, same, near in zip(found, few, plain, strict=True):
        assert np.array_equal(values, same)
        np.testing.assert_allclose(values, near, atol=1e-5)
    assert not np.allclose(found[2], found[3])


def test_what_cannot_be_recorded_is_computed_and_the_reason_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Recorder):
        def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

    model = build_llama(build_tokenizer())
    passes = Passes(Refusing(), few_shapes=True)
    assert ranked(model, passes) == ranked(model, Passes(few_shapes=True))
    assert passes.report()["replays"] == 0
    assert "not permitted" in passes.report()["reason"]
    assert len([one for one in caplog.records if "evaluation goes on without CUDA graphs" in one.message]) == 1


def test_a_cpu_computes_as_ever() -> None:
    passes = passes_for(build_llama(build_tokenizer()), "auto")
    assert not passes.few_shapes
    ranked(build_llama(build_tokenizer()), passes)
    assert passes.report()["captures"] == 0


def test_the_whole_causal_mask_is_that_of_transformers() -> None:
    """All keys of queries that are tokens; a query that is padding reads itself, so that it is a number."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    found = attention.causal_mask(mask, 3)
    expected = torch.tensor([
        [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ])  # fmt: skip
    assert torch.equal(found, expected[:, None].bool())
    assert attention.causal_mask(mask, 5)[0, 0, 0].tolist() == [True, False, False, False, False]


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("build", BUILDS)
def test_graphs_on_a_gpu_have_the_bits_of_passes_without(build: Callable[[Any], Any], autocast: bool) -> None:
    model = build(build_tokenizer(pad_token="<pad>")).to("cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast, cache_enabled=False):
        for compute in (ranked, validated):
            graphed, without = passes_for(model, "auto"), passes_for(model, "off")
            assert compute(model, graphed) == compute(model, without)
            assert graphed.report()["reason"] is None
            assert graphed.report()["replays"] > 2
            assert without.report()["replays"] == 0


@pytest.mark.gpu
def test_graphs_on_a_gpu_predict_with_the_weights_of_now() -> None:
    with on_own_stream(torch.device("cuda")):
        found = {}
        for way in ("auto", "off"):
            model = classifier().to("cuda")
            passes = passes_for(model, way)
            found[way] = predicted(model, passes)
            assert passes.report()["replays"] == (6 if way == "auto" else 0), passes.report()
    assert all(np.array_equal(one, other) for one, other in zip(found["auto"], found["off"], strict=True))
