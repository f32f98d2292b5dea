"""Random checkpoints of two layers, 64 wide, in stock files, with a tokenizer made of the test's own texts.

They are given to the suite as `model.path=`, so whatever a user would do with a downloaded base can be done with them.
No dropout of their own: at this width it is what decides how many steps memorising takes. The recipes' (of LoRA and of
the heads) stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from dual_lora.models.tiny_tokenizer import tiny_tokenizer

WIDTH, INNER, LAYERS, HEADS, VOCABULARY = 64, 128, 2, 4, 512
# An adapter leaves the output layer as it is. With the usual gain of 1 its largest logit is the length of the hidden
# state (8) times that of an embedding (0.8), so the likeliest of 512 tokens could have a probability of 0.46 at most
# and a text could not be memorised whatever the rank.
_LAST_GAIN = 4.0
_POSITIONS = {"gpt2": 512, "roberta": 130, "bert": 128, "deberta": 64}  # DeBERTa: twice the buckets


def settings(family: str) -> list[str]:
    """Return the words that tell the suite the sizes of such a checkpoint."""
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_positions": _POSITIONS.get(family, 0),
    }
    return ["model.dtype=float32", *(f"model.dimensions.{name}={value}" for name, value in sizes.items())]


def write(family: str, folder: Path, texts: Iterable[str]) -> Path:
    """Write config, weights and tokenizer; the same files for the same texts."""
    tokenizer = {"bert": _wordpiece, "llama": _without_blanks}.get(family, partial(_byte_level, family))(texts)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = _model(family, tokenizer)
    model.save_pretrained(folder)
    return folder


def _model(family: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.1}
    common |= {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    positions = _POSITIONS.get(family)
    if family in ("roberta", "bert", "deberta"):
        common |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if family == "gpt2":
        gpt2: Any = GPT2LMHeadModel(
            GPT2Config(
                n_embd=WIDTH,
                n_inner=INNER,
                n_layer=LAYERS,
                n_head=HEADS,
                n_positions=positions,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **common,
            )
        )
        torch.nn.init.constant_(gpt2.transformer.ln_f.weight, _LAST_GAIN)
        return gpt2
    if family == "llama":
        llama: Any = LlamaForCausalLM(LlamaConfig(num_key_value_heads=HEADS, **sizes, **common))
        torch.nn.init.constant_(llama.model.norm.weight, _LAST_GAIN)
        return llama
    if family == "roberta":
        return RobertaModel(RobertaConfig(max_position_embeddings=positions, type_vocab_size=1, **sizes, **common))
    if family == "bert":
        return BertModel(BertConfig(max_position_embeddings=positions, **sizes, **common))
    return DebertaV2Model(
        DebertaV2Config(
            relative_attention=True, position_buckets=positions // 2, max_position_embeddings=512,
            position_biased_input=False, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm",
            type_vocab_size=0, **sizes, **common,
        )
    )  # fmt: skip


def _byte_level(family: str, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Return the family's tiny tokenizer (its special tokens and frame) with merges of the test's own texts."""
    plain = tiny_tokenizer(family, max_length=_POSITIONS.get(family, 512) - 2 * (family == "roberta"))
    return plain.train_new_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)


def _without_blanks(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Return a tokenizer in LLaMA's manner to which any run of blanks and line ends is one blank.

    The published commonsense prompts of training and evaluation differ in blanks alone. A base that has learned nothing
    but 24 training texts cannot know that these mean the same.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(roles.values()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **roles)


def _wordpiece(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    roles = {f"{token[1:-1].lower()}_token": token for token in special}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=_POSITIONS["bert"],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **roles,
    )
