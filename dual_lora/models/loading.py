"""Load a base model and its tokenizer, whole or not at all."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from dual_lora.config import ModelConfig, ModelError
from dual_lora.distributed import sharding
from dual_lora.models import gpt2, shards
from dual_lora.models.architecture import check_dimensions, transformers_config
from dual_lora.models.head import HEADS, draw_head
from dual_lora.models.sentence_pieces import merge_by_score
from dual_lora.models.shapes import check_head
from dual_lora.models.sources import RANDOM_WEIGHTS_SEED, check_available, fingerprint, weights_folder
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from dual_lora.tasks.base import Head

_DROPOUT_FIELD = {"roberta": "classifier_dropout", "bert": "classifier_dropout", "deberta": "cls_dropout"}
_ENCODER_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_BASE_DROPOUTS = {
    "gpt2": ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    "llama": ("attention_dropout",),
    "qwen2": ("attention_dropout",),
    "roberta": _ENCODER_DROPOUTS,
    "bert": _ENCODER_DROPOUTS,
    "deberta": _ENCODER_DROPOUTS,
}
# A weight of a transformer block; what else a checkpoint may hold besides are old buffers and heads for pretraining.
_BLOCK_WEIGHT = re.compile(r"\.(h|layers?)\.\d+\.")
_OLD_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
# What a model returns is ours to ask: a checkpoint's config.json may want tuples, or every layer's states as well.
_ANSWERS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


_START_TOKENS = ("<s>", "<|begin_of_text|>")  # of LLaMA 1 and 2, and of LLaMA 3


@dataclass(frozen=True)
class LoadedModel:
    """A base model in evaluation mode, its tokenizer, and what identifies its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: dict[str, Any]
    start_token: str | None = None  # with which the tokenizer begins every text
    notes: tuple[str, ...] = ()  # what was done to the checkpoint, for the record


def load(
    model: ModelConfig,
    head: Head,
    *,
    dtype: str,
    seed: int,
    device: str | torch.device = "cpu",
    sharded: bool = False,
) -> LoadedModel:
    """Load the base model with the head that a task needs.

    `dtype`: "float32" or "bfloat16", see `resolve_dtype`. `seed`: draws the classification head, which is always new,
    and nothing else; the base is the same for every seed, also that of a random model. `device`: where the weights end
    up; under DeepSpeed ZeRO-3 they stay where it partitioned them. `sharded`: split the weights over the processes, see
    `distributed.sharding`; every process calls this. Only safetensors (or GGUF) files are read and no
    code of a repository is run. Raises `ConfigError` for a head the family cannot have, `ModelError` for anything
    missing.
    """
    check_head(model, head)
    if dtype not in ("float32", "bfloat16"):
        raise ModelError(f"dtype={dtype!r}: a base model is held in float32 or bfloat16")
    settings = _base_settings(model) | _head_settings(model, head)
    if model.source == "random" and not model.path:
        check_available(model)
        tokenizer: PreTrainedTokenizerBase = tiny_tokenizer(model.family, max_length=max_tokens(model))
        net = _random_model(model, head, tokenizer, settings, getattr(torch, dtype))
    else:
        folder = weights_folder(model)
        tokenizer = _tokenizer(folder, model.family)
        net = _from_folder(model, head, folder, settings, getattr(torch, dtype), torch.device(device), sharded)
    if head.kind == "classification":
        draw_head(net, HEADS[model.family], seed)
    if model.split_fused_attention:
        net = gpt2.split_attention(net)
    _set_padding(net, tokenizer, head)
    if sharded and not sharding.is_sharded(net):
        sharding.shard(net, torch.device(device).type)
    if not is_deepspeed_zero3_enabled():
        net.to(device)
    notes = require_start_token(tokenizer, model)
    start = tokenizer.bos_token if _starts(tokenizer) else None
    return LoadedModel(net.eval(), tokenizer, fingerprint(model), start, notes)


def _base_settings(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of the transformers config that the model's own dropout is in, where one is asked for."""
    if model.dropout is None:
        return {}
    return dict.fromkeys(_BASE_DROPOUTS[model.family], model.dropout)


def _head_settings(model: ModelConfig, head: Head) -> dict[str, Any]:
    """Return the fields of the transformers config that make the head."""
    if head.kind == "causal_lm":
        return {}
    settings: dict[str, Any] = {
        "num_labels": 1 if head.regression else head.num_labels,
        "problem_type": "regression" if head.regression else "single_label_classification",
    }
    if model.classifier_dropout is not None:
        if model.family not in _DROPOUT_FIELD:
            raise ModelError(
                f"model.classifier_dropout={model.classifier_dropout}: the head of a {model.family} model has none; "
                f"leave it null (families that have one: {', '.join(_DROPOUT_FIELD)})"
            )
        settings[_DROPOUT_FIELD[model.family]] = model.classifier_dropout
    return settings


def _auto_class(head: Head) -> Any:
    return AutoModelForCausalLM if head.kind == "causal_lm" else AutoModelForSequenceClassification


def max_tokens(model: ModelConfig) -> int:
    """Return how many tokens a random model takes (RoBERTa counts positions from 2; DeBERTa, LLaMA: no limit)."""
    if model.family == "roberta":
        return model.dimensions.max_positions - 2
    return model.dimensions.max_positions if model.family == "gpt2" else 512


def _random_model(
    model: ModelConfig, head: Head, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], dtype: torch.dtype
) -> PreTrainedModel:
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    # 0.1, not 0.02: at this width the outputs then differ visibly between inputs (guess)
    config = transformers_config(model, initializer_range=0.1, **ids, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        return _auto_class(head).from_config(config, dtype=dtype, trust_remote_code=False)


def _from_folder(
    model: ModelConfig,
    head: Head,
    folder: Path,
    settings: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
    sharded: bool,
) -> PreTrainedModel:
    # A head of ours replaces the file's. Given one by one, its fields contradict those that are still the file's.
    labels = {name: settings[name] for name in ("num_labels", "problem_type") if name in settings}
    others = {name: value for name, value in settings.items() if name not in labels}
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, **_ANSWERS, **others
    )
    for name, value in labels.items():
        setattr(config, name, value)
    check_dimensions(model, config)
    new = tuple(f"{name}." for name in HEADS[model.family]) if head.kind == "classification" else ()
    if sharded:
        found = shards.read(_auto_class(head), folder, config, new, dtype, device)
        if found is not None:
            net, surplus = found
            _check_complete(model, new, folder, {"unexpected_keys": surplus})
            return net
        device = torch.device("cpu")  # a GPU gets its shards only
    try:
        with _quiet_transformers():
            net, info = _auto_class(head).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are listed, and `_check_complete` refuses them by name
                **_placement(device),
            )
    except Exception as error:  # safetensors, transformers and OSError each have their own
        raise ModelError(f"model={model.name}: the weights in {folder} cannot be loaded: {error}") from error
    _check_complete(model, new, folder, info)
    if is_deepspeed_zero3_enabled():
        _make_rotary_frequencies(net)
    return net


def _make_rotary_frequencies(net: PreTrainedModel) -> None:
    """Make the frequencies of rotary embeddings anew, in float32 as every other way of loading does.

    DeepSpeed gives what is made while it partitions the dtype of the shards. transformers keeps these out of its way
    from 5.23 on; before, a bfloat16 base turned its queries and keys by rounded angles.
    """
    for module in net.modules():
        if hasattr(module, "inv_freq") and hasattr(module, "config"):
            for name, frequencies in type(module)(module.config).named_buffers():
                setattr(module, name, frequencies.to(module.inv_freq.device))


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep back transformers' report of missing weights, which `_check_complete` judges, and bars in log files."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _placement(device: torch.device) -> dict[str, Any]:
    """Put weights on a GPU as they are read, so that a 13 GB model is never whole in the host's memory."""
    if device.type != "cuda" or is_deepspeed_zero3_enabled():
        return {}
    return {"device_map": {"": device}}


def _check_complete(model: ModelConfig, new: tuple[str, ...], folder: Path, info: dict[str, Any]) -> None:
    """Refuse a base of which something was made up. Raises `ModelError` listing the weights."""
    missing = sorted(key for key in info.get("missing_keys", ()) if not key.startswith(new))
    surplus = sorted(
        key for key in info["unexpected_keys"] if _BLOCK_WEIGHT.search(key) and not key.endswith(_OLD_BUFFERS)
    )
    wrong = sorted(str(entry[0]) for entry in info.get("mismatched_keys", ()) if not entry[0].startswith(new))
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}"
        for what, keys in (
            ("weights of the model are not in the files", missing),
            ("weights in the files have no place in the model", surplus),
            ("weights have another shape", wrong),
        )
        if keys
    ]
    if problems:
        raise ModelError(
            f"model={model.name}: {folder} does not hold this model; {'; '.join(problems)}. Training would start from "
            f"random values: fetch the checkpoint again or give the right folder with model.path="
        )


def _tokenizer(folder: Path, family: str) -> PreTrainedTokenizerBase:
    alone = not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    # Nothing names the class of a lone tokenizer.model; transformers' guess leaves out the blank before a text.
    kind = LlamaTokenizer if alone and family == "llama" else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        merge_by_score(tokenizer, folder)
        return tokenizer
    except Exception as error:  # transformers raises OSError, ValueError and others
        raise ModelError(
            f"{folder}: the tokenizer cannot be loaded ({error}); the folder needs tokenizer.json, or the family's own "
            "vocabulary files, and tokenizer_config.json"
        ) from error


def require_start_token(tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> tuple[str, ...]:
    """Let every text begin with the token that LLaMA was trained to begin with; return a note if that had to be added.

    transformers 5 adds it only where a tokenizer's files say so; version 4 did without being told, so conversions of
    2023, lone vocabularies and early copies of LLaMA 3 do not say it. Others of the architecture (SmolLM2) have no such
    token. Raises `ModelError` if it cannot be added.
    """
    known = [token for token in _START_TOKENS if token in tokenizer.get_vocab()]
    if model.family != "llama" or not known or tokenizer.bos_token not in (None, *known):
        return ()
    if tokenizer.bos_token is None:
        tokenizer.bos_token = known[0]
    if _starts(tokenizer):
        return ()
    tokenizer.add_bos_token = True  # writes the post-processor of a tokenizer.json anew
    if not _starts(tokenizer):
        raise ModelError(
            f"model={model.name}: texts do not begin with {tokenizer.bos_token!r} (once), as LLaMA was trained: "
            f"{tokenizer('a').tokens()}; take tokenizer.json and tokenizer_config.json of a current copy, with "
            '"add_bos_token": true'
        )
    return (f"start token {tokenizer.bos_token} added: the checkpoint's tokenizer leaves it out",)


def _starts(tokenizer: PreTrainedTokenizerBase) -> bool:
    start = tokenizer.bos_token_id
    return start is not None and [number == start for number in tokenizer("a a")["input_ids"][:2]] == [True, False]


def _set_padding(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: Head) -> None:
    """Choose the padding token and side.

    Without a padding token of its own, LLaMA pads with `<unk>` (as LLM-Adapters does), GPT-2 and Llama 3 with the end
    token; masks, not ids, tell padding from text. Left for generation, right for classification.
    """
    if tokenizer.pad_token_id is None:
        distinct = tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token
        tokenizer.pad_token = tokenizer.unk_token if distinct else tokenizer.eos_token
    tokenizer.padding_side = "left" if head.kind == "causal_lm" else "right"
    net.config.pad_token_id = tokenizer.pad_token_id
    if getattr(net, "generation_config", None) is not None:
        net.generation_config.pad_token_id = tokenizer.pad_token_id
