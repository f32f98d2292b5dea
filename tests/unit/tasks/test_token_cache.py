"""Token ids kept between runs: those of the tokenizer, of this one, and made again where a file is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dual_lora.tasks import token_cache
from dual_lora.tasks.encoding import all_prompt_ids
from tests.unit.tiny_text_model import SENTENCES, build_tokenizer

TEXTS = [f"{text[: 5 + number]} {number}" for number, text in enumerate(SENTENCES * 5)]


@pytest.fixture(autouse=True)
def few_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_LORA_CACHE", str(tmp_path))
    monkeypatch.setattr(token_cache, "_FEWEST", 10)


class Counted:
    """Encodes, and keeps what it was asked."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self.asked: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        self.asked.append(list(texts))
        return [self.tokenizer(text)["input_ids"] for text in texts]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return token_cache.ids_of(texts, self.tokenizer, self)


def test_ids_are_those_of_the_tokenizer_and_are_made_once() -> None:
    counted = Counted()
    expected = [counted.tokenizer(text)["input_ids"] for text in TEXTS]
    assert counted.ids(TEXTS) == expected
    assert counted.ids(TEXTS) == expected
    assert all_prompt_ids(TEXTS, counted.tokenizer) == expected
    assert len(counted.asked) == 1
    assert all(type(number) is int for row in counted.ids(TEXTS) for number in row)


def test_a_text_that_comes_again_is_encoded_once_and_stands_where_it_stood() -> None:
    counted = Counted()
    found = counted.ids([TEXTS[1], *TEXTS, TEXTS[0]])
    assert counted.asked == [[TEXTS[1], TEXTS[0], *TEXTS[2:]]]
    assert (found[0], found[1], found[-1]) == (found[2], found[-1], found[1])


@pytest.mark.parametrize("change", ["text", "order", "tokenizer", "end"])
def test_other_texts_and_other_tokenizers_are_encoded_anew(change: str) -> None:
    counted, texts = Counted(), list(TEXTS)
    counted.ids(texts)
    if change == "text":
        texts[3] += "!"
    elif change == "order":
        texts.reverse()
    elif change == "tokenizer":
        counted.tokenizer.add_tokens(["correct answer"])
    else:
        counted.tokenizer.eos_token = "a"
    assert counted.ids(texts) == [counted.tokenizer(text)["input_ids"] for text in texts]
    assert len(counted.asked) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_made_again(damage: str, tmp_path: Path) -> None:
    counted = Counted()
    expected = counted.ids(TEXTS)
    [path] = (tmp_path / "tokens").iterdir()
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    path.write_bytes({"cut": whole[: len(whole) // 2], "flipped": flipped, "empty": b""}[damage])
    assert counted.ids(TEXTS) == expected
    assert path.read_bytes() == whole
    assert counted.ids(TEXTS) == expected
    assert len(counted.asked) == 2


def test_only_the_files_that_were_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "_FILES", 3)
    counted = Counted()
    for number in range(5):
        counted.ids([f"{text} {number}" for text in TEXTS])
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_without_a_cache_ids_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DUAL_LORA_CACHE", str(tmp_path / "file"))
    counted = Counted()
    assert counted.ids(TEXTS) == counted.ids(TEXTS)
    assert len(counted.asked) == 2
