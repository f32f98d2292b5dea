"""Preference pairs of random words and their tokenizer, for the trainers of TRL."""

from __future__ import annotations

import random

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = 64  # as many as the tiny models know


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{index}": index for index in range(4, WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def pairs(count: int = 4) -> Dataset:
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{draw.randrange(6, WORDS)}" for _ in range(words))

    columns = {"prompt": 4, "chosen": 5, "rejected": 5}
    return Dataset.from_dict({name: [f" {text(words)}" for _ in range(count)] for name, words in columns.items()})
