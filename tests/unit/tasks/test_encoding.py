"""Encoding: which tokens carry loss, what the cut-off does, and that training and evaluation see the same prompt."""

import dataclasses

import pytest

from dual_lora.config import DataError, ProtocolConfig
from dual_lora.tasks import encoding
from dual_lora.tasks.base import Prompt
from dual_lora.tasks.encoding import IGNORED, encode_all, prompt_ids
from tests.unit.tiny_text_model import build_tokenizer

PAPER = ProtocolConfig(name="paper", task="commonsense", loss_on="all")
STRICT = ProtocolConfig(name="strict", task="commonsense", loss_on="answer")
PROMPT = Prompt("### Instruction:\nwhy does ice float?\n\n### Response:\n", "it is lighter")


def encode(*arguments):
    return encoding.encode(*arguments)[0]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_strict_loss_is_on_the_answer_and_the_end_alone(tokenizer):
    row = encode(PROMPT, tokenizer, STRICT, 128)
    prompt = tokenizer(PROMPT.prompt)["input_ids"]
    answer = tokenizer(PROMPT.answer)["input_ids"]
    assert row["input_ids"] == [*prompt, *answer, tokenizer.eos_token_id]
    assert row["labels"] == [IGNORED] * len(prompt) + [*answer, tokenizer.eos_token_id]
    assert prompt_ids(PROMPT.prompt, tokenizer) == prompt


def test_paper_loss_is_on_everything(tokenizer):
    row = encode(PROMPT, tokenizer, PAPER, 128)
    assert row["labels"] == row["input_ids"]
    assert row["input_ids"][-1] == tokenizer.eos_token_id


def test_start_token_is_read_in_training_and_evaluation_alike():
    tokenizer = build_tokenizer(bos_token="<start>")
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", tokenizer.bos_token_id)]
    )
    row = encode(PROMPT, tokenizer, STRICT, 128)
    assert row["input_ids"][0] == tokenizer.bos_token_id
    head = prompt_ids(PROMPT.prompt, tokenizer)
    assert row["input_ids"][: len(head)] == head
    assert row["labels"][: len(head)] == [IGNORED] * len(head)


def test_end_token_is_left_off_on_request(tokenizer):
    row = encode(PROMPT, tokenizer, dataclasses.replace(STRICT, append_end=False), 128)
    assert row["input_ids"] == tokenizer(PROMPT.text)["input_ids"]


def test_a_token_across_the_boundary_is_refused_under_answer_loss(tokenizer):
    joined = Prompt("the correct ans", "wer is true")
    assert prompt_ids(joined.text, tokenizer)[: len(prompt_ids(joined.prompt, tokenizer))] != prompt_ids(
        joined.prompt, tokenizer
    )
    with pytest.raises(DataError, match="share a token.*'wer is true'.*loss_on=all"):
        encode(joined, tokenizer, STRICT, 128)
    assert encode(joined, tokenizer, PAPER, 128) is not None


def test_strict_leaves_out_what_would_cut_an_answer_and_counts_it(tokenizer):
    length = len(encode(PROMPT, tokenizer, STRICT, 128)["input_ids"])
    assert encode(PROMPT, tokenizer, STRICT, length) is not None
    assert encode(PROMPT, tokenizer, STRICT, length - 1) is None
    longer = Prompt(PROMPT.prompt, PROMPT.answer + " than water" * 5)
    rows, counts = encode_all([longer, PROMPT, longer], tokenizer, STRICT, length)
    assert rows == [encode(PROMPT, tokenizer, STRICT, length)]
    assert counts == {"examples": 3, "over_length": 2, "answer_cut": 0, "left_out": 2}


def test_paper_truncates_as_published_and_counts_it(tokenizer):
    ids = tokenizer(PROMPT.text)["input_ids"]
    cut, counts = encode_all([PROMPT], tokenizer, PAPER, len(ids) - 2)
    assert cut[0]["input_ids"] == ids[:-2]
    assert counts == {"examples": 1, "over_length": 1, "answer_cut": 1, "left_out": 0}
    # Exactly at the cut-off the published code keeps the text and has no room for the end token.
    full, counts = encode_all([PROMPT], tokenizer, PAPER, len(ids))
    assert full[0]["input_ids"] == ids
    assert counts["over_length"] == 0
    assert encode(PROMPT, tokenizer, PAPER, len(ids) + 1)["input_ids"] == [*ids, tokenizer.eos_token_id]


def test_the_protocols_cut_off_wins_over_the_recipes(tokenizer):
    protocol = dataclasses.replace(PAPER, max_length_tokens=5)
    assert len(encode(PROMPT, tokenizer, protocol, 128)["input_ids"]) == 5


def test_nothing_left_is_an_error(tokenizer):
    longer = Prompt(PROMPT.prompt, PROMPT.answer + " than water" * 5)
    shortest, longest = (len(encode(prompt, tokenizer, STRICT, 128)["input_ids"]) for prompt in (PROMPT, longer))
    told = (
        rf"of all 2 the cut-off of 4 tokens .*; one example needs {shortest}, all of them {longest}; raise recipe\.max"
    )
    with pytest.raises(DataError, match=told):
        encode_all([longer, PROMPT], tokenizer, STRICT, 4)
    assert len(encode_all([longer, PROMPT], tokenizer, STRICT, shortest)[0]) == 1
    assert len(encode_all([longer, PROMPT], tokenizer, STRICT, longest)[0]) == 2


def test_a_row_without_a_label_is_left_out_and_counted_under_the_papers_cut_off_too(tokenizer):
    protocol = dataclasses.replace(PAPER, loss_on="answer")
    start = len(tokenizer(PROMPT.prompt)["input_ids"])
    longer = Prompt(PROMPT.prompt * 2, PROMPT.answer)
    rows, counts = encode_all([longer, PROMPT, longer], tokenizer, protocol, start + 1)
    assert [row["labels"] for row in rows] == [[IGNORED] * start + tokenizer(PROMPT.answer)["input_ids"][:1]]
    assert counts == {"examples": 3, "over_length": 3, "answer_cut": 1, "left_out": 2}
    with pytest.raises(DataError, match=rf"one example needs {start + 1}, all of them {start + 1}; raise recipe\.max"):
        encode_all([PROMPT], tokenizer, protocol, start)
    assert encode(PROMPT, tokenizer, PAPER, 1) is None, "nothing predicts a first token"
