"""The prompts: the published two byte for byte, and a clean one whose boundary no tokenizer crosses."""

import base64
import os
from functools import lru_cache
from pathlib import Path

import pytest

from dual_lora.config import ConfigError, DataConfig, ProtocolConfig, TaskConfig
from dual_lora.tasks.commonsense import SUBSETS, Commonsense
from dual_lora.tasks.commonsense.prompts import prompt
from dual_lora.tasks.encoding import IGNORED, encode, prompt_ids
from tests.unit.tiny_text_model import build_tokenizer

PAPER = ProtocolConfig(name="paper", task="commonsense", prompt="alpaca_indented", loss_on="all", max_length_tokens=256)
STRICT = ProtocolConfig(name="strict", task="commonsense", prompt="alpaca", loss_on="answer", max_length_tokens=1024)
DATA = os.environ.get("DUAL_LORA_DATA")
SAMPLE = DataConfig(source="sample")


def build(protocol, data=SAMPLE, target="label"):
    task = TaskConfig(
        name="commonsense", module="commonsense", label="", subsets=SUBSETS, headline="accuracy", target=target
    )
    return Commonsense(task, protocol, data)


def rebuilt(description: str, instruction: str) -> str:
    """Turn the written description (a middle dot is a blank, {16} sixteen of them) into the text."""
    return (
        description.replace("\n", "")
        .replace("⏎", "\n")
        .replace("·", " ")
        .replace("{16}", " " * 16)
        .replace("{request}", REQUEST)
        .replace("{instruction}", instruction)
    )


REQUEST = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
TRAINING = """{request}··⏎
⏎
{16}### Instruction:⏎
{16}{instruction}⏎
{16}⏎
{16}### Response:⏎
{16}"""
EVALUATION = """{request}·⏎
⏎
{16}### Instruction:⏎
{16}{instruction}⏎
⏎
{16}### Response:⏎
{16}"""


def test_published_templates_byte_for_byte():
    instruction = "Is it?\n\nAnswer format: true/false"
    training = prompt("alpaca_indented", instruction, training=True)
    evaluation = prompt("alpaca_indented", instruction, training=False)
    assert training == rebuilt(TRAINING, instruction)
    assert evaluation == rebuilt(EVALUATION, instruction)


def test_published_templates_differ_in_exactly_three_places():
    training = prompt("alpaca_indented", "X", training=True).split("\n")
    evaluation = prompt("alpaca_indented", "X", training=False).split("\n")
    different = [(a, b) for a, b in zip(training, evaluation, strict=True) if a != b]
    assert [(a[len(a.rstrip()) :], b[len(b.rstrip()) :]) for a, b in different] == [("  ", " "), (" " * 16, "")]
    assert training[-1] == evaluation[-1] == " " * 16


def test_training_text_carries_the_published_sentence():
    task = build(PAPER)
    example = task.examples("train")[0]
    text = task.render(example, training=True)
    assert text.text == rebuilt(TRAINING, example.fields["instruction"]) + example.fields["output"]
    assert text.answer == f"the correct answer is {example.references[0]}"


def test_strict_uses_one_prompt():
    task = build(STRICT)
    for example in task.examples("test"):
        assert task.render(example, training=True) == task.render(example, training=False)


def test_text_target_teaches_the_answer_in_words_without_naming_labels():
    task = build(STRICT, target="text")
    for example in task.examples("test"):
        text = task.render(example, training=True)
        assert "Answer format" not in text.prompt
        assert task.read(text.answer, example) == example.references[0]


def test_an_unknown_prompt_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="'alpacca' is not a commonsense prompt; did you mean 'alpaca'"):
        build(ProtocolConfig(name="strict", task="commonsense", prompt="alpacca"))


def assert_clean_boundary(tokenizer, task, examples):
    for example in examples:
        text = task.render(example, training=True)
        head, whole = prompt_ids(text.prompt, tokenizer), prompt_ids(text.text, tokenizer)
        row, _ = encode(text, tokenizer, STRICT, 4096)
        assert whole[: len(head)] == head
        assert len(whole) > len(head)
        assert row["input_ids"] == [*whole, tokenizer.eos_token_id]
        assert row["labels"] == [IGNORED] * len(head) + [*whole[len(head) :], tokenizer.eos_token_id]


@pytest.mark.parametrize("target", ["label", "text"])
def test_clean_boundary_on_the_sample(target):
    task = build(STRICT, target=target)
    assert_clean_boundary(build_tokenizer(), task, task.examples("train"))


@lru_cache
def llama2():
    from transformers import LlamaTokenizer

    return LlamaTokenizer.from_pretrained(Path(DATA) / "tokenizers" / "llama2", add_bos_token=True)


@lru_cache
def gpt2():
    from transformers import GPT2Tokenizer

    folder = Path(DATA) / "tokenizers" / "gpt2"
    return GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@lru_cache
def llama3():
    """Build the Llama 3 tokenizer from its published ranks; the merge of a token is its last two parts by rank."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = (Path(DATA) / "tokenizers" / "llama3" / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    letters = bytes_to_unicode()

    def name(token):
        return "".join(letters[byte] for byte in token)

    def parts(token, limit):
        pieces = [bytes([byte]) for byte in token]
        while len(pieces) > 1:
            pair_ranks = [ranks.get(a + b, limit) for a, b in zip(pieces, pieces[1:], strict=False)]
            best = min(range(len(pair_ranks)), key=pair_ranks.__getitem__)
            if pair_ranks[best] >= limit:
                break
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        return pieces

    pairs = (tuple(map(name, parts(token, rank))) for token, rank in ranks.items())
    merges = [pair for pair in pairs if len(pair) == 2]  # the few others are whole words, met through ignore_merges
    core = Tokenizer(models.BPE(vocab={name(t): r for t, r in ranks.items()}, merges=merges, ignore_merges=True))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


@lru_cache
def real_items(target):
    """Return the task and every 60th of its test items."""
    task = build(STRICT, DataConfig(source="local", dir=DATA), target)
    return task, task.examples("test")[::60]


@pytest.mark.skipif(DATA is None, reason="needs DUAL_LORA_DATA with the real tokenizers")
@pytest.mark.parametrize("load", [llama2, llama3, gpt2])
@pytest.mark.parametrize("target", ["label", "text"])
def test_clean_boundary_with_real_tokenizers_on_real_items(load, target):
    assert_clean_boundary(load(), *real_items(target))


@pytest.mark.skipif(DATA is None, reason="needs DUAL_LORA_DATA with the real tokenizers")
@pytest.mark.parametrize(("load", "clean"), [(llama2, True), (llama3, False), (gpt2, False)])
def test_the_published_boundary_holds_for_llama_and_not_for_llama3(load, clean):
    """The reason for the strict prompt: newer tokenizers join the blanks before the answer with its first word."""
    tokenizer = load()
    task = build(PAPER)
    for example in task.examples("train")[:40]:
        text = task.render(example, training=True)
        head, whole = prompt_ids(text.prompt, tokenizer), prompt_ids(text.text, tokenizer)
        assert (whole[: len(head)] == head) is clean
