"""Ranking: log-likelihoods equal a direct computation, whatever the batch and the tokenizer's joins."""

import math

import pytest
import torch

from dual_lora.evaluation.ranking import rank
from tests.unit.tiny_text_model import SENTENCES, build_gpt2, build_llama

PROMPTS = [SENTENCES[1], SENTENCES[0][:30] + "\n", SENTENCES[2] + "\n", "Why?\n"]
CANDIDATES = [
    ["it is lighter", "it is cold", "true"],
    ["answer1", "answer2"],
    ["the correct answer is answer1", "x", "ending4 ending4", "a b c"],
    ["no", "because of the cold"],
]


def direct(model, tokenizer, prompt, text):
    """Sum the log-probabilities of the candidate's tokens in one plain forward of the whole text."""
    head = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + text)["input_ids"]
    assert whole[: len(head)] == head
    with torch.no_grad():
        log_probabilities = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(log_probabilities[place - 1, whole[place]]) for place in range(len(head), len(whole)))


@pytest.mark.parametrize("build", [build_llama, build_gpt2])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_log_likelihood_equals_a_direct_computation(tokenizer, build, batch_size):
    model = build(tokenizer)
    values = rank(model, tokenizer, PROMPTS, CANDIDATES, batch_size=batch_size)
    for prompt, texts, row in zip(PROMPTS, CANDIDATES, values, strict=True):
        assert row == pytest.approx([direct(model, tokenizer, prompt, text) for text in texts], abs=2e-4)


def test_all_continuations_of_a_prompt_share_one_unit_of_probability(tokenizer):
    """Independent of any other code: the one-token continuations that stay one token sum to at most 1."""
    model = build_llama(tokenizer)
    prompt = SENTENCES[1]
    head = tokenizer(prompt)["input_ids"]
    words = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    single = sorted({w for w in words if w.isalpha() and tokenizer(prompt + w)["input_ids"][: len(head)] == head})
    single = [word for word in single if len(tokenizer(prompt + word)["input_ids"]) == len(head) + 1]
    row = rank(model, tokenizer, [prompt], [single], batch_size=16)[0]
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([head])).logits[0, -1].double().softmax(-1)
    own = [tokenizer(prompt + word)["input_ids"][-1] for word in single]
    assert len(single) > 20
    assert sum(map(math.exp, row)) == pytest.approx(float(probabilities[own].sum()), abs=1e-5)


def test_a_token_across_the_boundary_is_compared_from_before_it(tokenizer):
    """ "the correct ans" + "wer": the comparison starts where the candidates' ids begin to differ from the prompt's."""
    model = build_llama(tokenizer)
    prompt, texts = "the correct ans", ["wer is true", "wer is cold"]
    wholes = [tokenizer(prompt + text)["input_ids"] for text in texts]
    head = tokenizer(prompt)["input_ids"]
    shared = next(i for i in range(len(head)) if wholes[0][i] != head[i])
    expected = []
    for whole in wholes:
        with torch.no_grad():
            log_probabilities = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
        expected.append(sum(float(log_probabilities[i - 1, whole[i]]) for i in range(shared, len(whole))))
    assert rank(model, tokenizer, [prompt], [texts], batch_size=2)[0] == pytest.approx(expected, abs=2e-4)


def test_every_batch_is_handed_over(tokenizer):
    model = build_llama(tokenizer)
    seen = {}
    full = rank(
        model,
        tokenizer,
        PROMPTS,
        CANDIDATES,
        batch_size=4,
        on_batch=lambda indices, rows: seen.update(zip(indices, rows, strict=True)),
    )
    assert [seen[index] for index in range(len(PROMPTS))] == full


def test_an_empty_candidate_is_refused(tokenizer):
    with pytest.raises(ValueError, match="item 0: an empty candidate"):
        rank(build_llama(tokenizer), tokenizer, ["Why?\n"], [["yes", ""]], batch_size=2)
