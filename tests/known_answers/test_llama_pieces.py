"""A LLaMA checkpoint with `tokenizer.model` alone reads the published prompt in SentencePiece's own tokens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from dual_lora import models
from dual_lora.models.real_tokenizers import real_tokenizer
from dual_lora.tasks.base import Head
from tests.known_answers import bases, first_step, raw_data

pytestmark = pytest.mark.skipif(bases.DATA is None, reason="needs DUAL_LORA_DATA with LLaMA's tokenizer")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the converters of the time wrote it: the SentencePiece model, and no tokenizer.json."""
    parent = tmp_path_factory.mktemp("pieces")
    folder = bases.make(first_step.composed("llama/commonsense/lora").model, parent).folder
    (folder / "tokenizer.json").unlink()
    shutil.copy(Path(str(bases.DATA)) / "tokenizers" / "llama2" / "tokenizer.model", folder)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_tokens_are_those_of_sentencepiece(checkpoint: Path, tmp_path: Path) -> None:
    config = first_step.composed("llama/commonsense/lora").model
    sizes = dataclasses.replace(
        config.dimensions, hidden_size=bases.WIDTH, intermediate_size=bases.INNER, num_layers=bases.LAYERS,
        num_heads=bases.HEADS, num_key_value_heads=bases.HEADS,
    )  # fmt: skip
    config = dataclasses.replace(config, path=str(checkpoint), dimensions=sizes)
    loaded = models.load(config, Head("causal_lm"), dtype="float32", seed=0).tokenizer
    from_files = real_tokenizer("llama", Path(str(bases.DATA)) / "tokenizers", max_length=512)
    pieces = SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    raw_data.write(tmp_path)
    items = raw_data.commonsense(tmp_path, published=True)
    texts = [item.before + item.answer for item in items] + [f"a\n{' ' * count}### b" for count in range(33)]
    for text in texts:
        right = [1, *pieces.encode(text)]
        assert loaded(text)["input_ids"] == right, text
        assert from_files(text)["input_ids"] == right, text
