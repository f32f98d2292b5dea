"""Tokens of a text by means other than the project's: the tokenizer's own library or rule, special tokens set by hand.

`Words.ids` knows no special tokens. What stands in front of, between and after texts is written out here for each
family, as its authors publish it.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import regex
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from dual_lora.models.tiny_tokenizer import tiny_tokenizer

Ids = list[int]


@dataclass(frozen=True)
class Words:
    """A tokenizer for text, and the ids of what frames it."""

    ids: Callable[[str], Ids]
    start: tuple[int, ...] = ()  # in front of every text
    end: int = -1  # after every text
    between: tuple[int, ...] = ()  # encoders: between the two texts of a pair
    numbers_texts: bool = False  # encoders: the second text of a pair has type 1


def one_text(words: Words, text: str, limit: int) -> dict[str, Ids]:
    """Frame one text for an encoder; what is over `limit` tokens is cut off the text's end."""
    ids = words.ids(text)[: limit - 2]
    return {"input_ids": [*words.start, *ids, words.end]}


def two_texts(words: Words, first: str, second: str, limit: int) -> dict[str, Ids]:
    """Frame a pair for an encoder; over `limit` tokens the longer text loses its last token, one after the other.

    Of two that have come to the same length, the one that was shorter loses (the rule of the library `tokenizers`).
    """
    a, b = words.ids(first), words.ids(second)
    once_shorter = a if len(a) <= len(b) else b
    while len(a) + len(b) + 2 + len(words.between) > limit:
        (once_shorter if len(a) == len(b) else max(a, b, key=len)).pop()
    ids = [*words.start, *a, *words.between, *b, words.end]
    if not words.numbers_texts:
        return {"input_ids": ids}
    return {"input_ids": ids, "token_type_ids": [0] * (2 + len(a)) + [1] * (len(b) + 1)}


# ------------------------------------------------------------------ tiny ones


def _tiny(family: str) -> Callable[[str], Ids]:
    core = tiny_tokenizer(family, max_length=512).backend_tokenizer
    return lambda text: core.encode(text, add_special_tokens=False).ids


QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_like_qwen2(core: Tokenizer) -> None:
    """Set the published splitting of Qwen2 (NFC, then its pattern) in front of the pieces of `core`."""
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.normalizer, core.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Sequence([split, level])


def _tiny_qwen2() -> Callable[[str], Ids]:
    core = tiny_tokenizer("gpt2", max_length=512).backend_tokenizer
    split_like_qwen2(core)
    return lambda text: core.encode(text, add_special_tokens=False).ids


TINY: dict[str, Callable[[], Words]] = {
    "gpt2": lambda: Words(_tiny("gpt2"), end=0),
    # bases.py adds <|im_start|> 512 and <|im_end|> 513; neither model puts anything in front of a text
    "qwen2": lambda: Words(_tiny_qwen2(), end=513),
    "smollm2": lambda: Words(_tiny("gpt2"), end=513),
    "llama": lambda: Words(_tiny("llama"), start=(1,), end=2),
    "roberta": lambda: Words(_tiny("roberta"), start=(0,), end=2, between=(2, 2)),
    "deberta": lambda: Words(_tiny("deberta"), start=(1,), end=2, between=(2,), numbers_texts=True),
}


# ------------------------------------------------------------------ real ones


@functools.cache
def gpt2(folder: Path) -> Words:
    """Byte-level BPE from vocab.json and merges.txt; 50256 is <|endoftext|>."""
    core = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Words(lambda text: core.encode(text).ids, end=50256)


@functools.cache
def roberta(folder: Path, gpt2_folder: Path) -> Words:
    """GPT-2's pieces under RoBERTa's numbers: <s> a </s></s> b </s>, with <s> 0 and </s> 2."""
    import json

    core = Tokenizer(models.BPE.from_file(str(gpt2_folder / "vocab.json"), str(gpt2_folder / "merges.txt")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    numbers = json.loads((folder / "vocab.json").read_text())
    return Words(lambda text: [numbers[piece] for piece in core.encode(text).tokens], start=(0,), end=2, between=(2, 2))


@functools.cache
def bert(folder: Path) -> Words:
    """Lower-cased word pieces of vocab.txt: [CLS] a [SEP] b [SEP], the second text of type 1."""
    vocabulary = {word: number for number, word in enumerate((folder / "vocab.txt").read_text().splitlines())}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    return Words(lambda text: core.encode(text).ids, (cls,), sep, (sep,), numbers_texts=True)


@functools.cache
def llama2(folder: Path) -> Words:
    """SentencePiece's own library; <s> 1 in front, </s> 2."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return Words(lambda text: list(pieces.encode(text)), start=(1,), end=2)


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@functools.cache
def llama3_ranks(folder: Path) -> dict[bytes, int]:
    """Return the number of every byte string of the vocabulary."""
    lines = (folder / "tokenizer.model").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


@functools.cache
def llama3(folder: Path) -> Words:
    """The published ranks merged pair by pair, lowest first; <|begin_of_text|> 128000, <|end_of_text|> 128001."""
    ranks = llama3_ranks(folder)

    @functools.cache
    def piece_ids(piece: bytes) -> tuple[int, ...]:
        if piece in ranks:
            return (ranks[piece],)
        parts = [bytes([byte]) for byte in piece]
        while True:
            found = [
                (ranks[a + b], at) for at, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
            ]
            if not found:
                return tuple(ranks[part] for part in parts)
            _, at = min(found)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]

    def ids(text: str) -> Ids:
        return [number for piece in regex.findall(LLAMA3_PATTERN, text) for number in piece_ids(piece.encode())]

    return Words(ids, start=(128000,), end=128001)
