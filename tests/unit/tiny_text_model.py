"""A tokenizer made from a few sentences and random models over it: milliseconds to build, no downloads."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\nPlease choose the correct answer to the question: why does ice float?\n\n### Response:\n",
    "Answer1: it is lighter Answer2: it is cold Answer3: it is clear\n\nAnswer format: answer1/answer2/answer3",
    "the correct answer is answer1, the correct answer is true, the correct answer is solution2, ending4, option1",
]


def build_tokenizer(*, pad_token: str | None = None, bos_token: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with an end token, and with a padding or start token if asked."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<end>"] + [token for token in (pad_token, bos_token) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token=pad_token, bos_token=bos_token, padding_side="right"
    )


def build_llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0, positions: int = 256) -> LlamaForCausalLM:
    """Return a float32 LLaMA of two layers whose logits are far apart, so that the next token is no close call."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            initializer_range=0.3,
        )
    )
    return model.eval()


def build_gpt2(tokenizer: PreTrainedTokenizerFast, seed: int = 0, positions: int = 256) -> GPT2LMHeadModel:
    """Return a float32 GPT-2 of two layers: its learned positions make a wrong position id visible."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=positions, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()
