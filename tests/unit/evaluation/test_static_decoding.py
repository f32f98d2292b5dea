"""Decoding with a static cache: the replies of one that grows, and of a graph the bits of its steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from dual_lora.config import DecodingConfig
from dual_lora.evaluation.generation import generate
from dual_lora.evaluation.static_decoding import StaticDecoding, decoding_for
from dual_lora.training.recorders import Recorder
from tests.unit.evaluation.test_generation import PROMPTS
from tests.unit.tiny_text_model import build_gpt2, build_llama, build_tokenizer

DECODINGS = [
    DecodingConfig(max_new_tokens=12),
    DecodingConfig(beams=4, max_new_tokens=8, length_penalty=0.8, no_repeat_ngram_size=2),
]


class Kept(Recorder):
    """Replays into the memory of the recording, as a graph does, and computes nothing while it records."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        own: list[Tensor] = []

        def replay() -> Tensor:
            logits = function()
            self.logits.append(logits.clone())
            own[:] = own or [torch.empty_like(logits)]
            return own[0].copy_(logits)

        return replay


@pytest.mark.parametrize("build", [build_llama, build_gpt2])
@pytest.mark.parametrize("decoding", DECODINGS, ids=["greedy", "beams"])
def test_replies_are_those_of_a_growing_cache(build: Callable[[Any], Any], decoding: DecodingConfig) -> None:
    """Prompts of many lengths, so that padding, rounding of the cache and the places of beams matter."""
    tokenizer = build_tokenizer()
    model = build(tokenizer)
    expected = generate(model, tokenizer, PROMPTS, decoding, batch_size=5)
    assert len(set(expected)) > len(expected) // 2
    assert generate(model, tokenizer, PROMPTS, decoding, batch_size=5, static=StaticDecoding(None)) == expected
    graphed = StaticDecoding(Kept())
    assert generate(model, tokenizer, PROMPTS, decoding, batch_size=5, static=graphed) == expected
    assert graphed.replays > 2 * len(PROMPTS) // 5
    assert "forward" not in vars(model)


@torch.no_grad()
def test_a_layer_of_the_prompt_is_dropped_before_the_next_is_copied() -> None:
    model = build_llama(build_tokenizer())
    prompt = DynamicCache(config=model.config)
    model(input_ids=torch.ones(2, 5, dtype=torch.long), past_key_values=prompt)
    held = [(layer.keys, layer.values) for layer in prompt.layers]
    kept = [weakref.ref(tensor) for pair in held for tensor in pair]
    copies = [keys.clone() for keys, _ in held]
    del held
    fixed = StaticDecoding(None).cache(prompt, model.config, 8)
    assert fixed is not None
    assert [tensor() for tensor in kept] == [None] * len(kept)
    assert all(torch.equal(layer.keys[:, :, :5], keys) for layer, keys in zip(fixed.layers, copies, strict=True))


@pytest.mark.parametrize("build", [build_llama, build_gpt2])
def test_float32_weights_decode_under_autocast(build: Callable[[Any], Any]) -> None:
    """LLaMA's keys are then in float32, which positions turn them into, and its values in bfloat16."""
    tokenizer = build_tokenizer()
    model = build(tokenizer)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = generate(model, tokenizer, PROMPTS[:6], DECODINGS[0], batch_size=3)
        found = generate(model, tokenizer, PROMPTS[:6], DECODINGS[0], batch_size=3, static=StaticDecoding(Kept()))
    assert sum(a == b for a, b in zip(found, expected, strict=True)) > 3  # bfloat16 may choose otherwise


def test_replies_that_are_complete_end_early() -> None:
    tokenizer = build_tokenizer()
    model = build_llama(tokenizer)
    options: dict[str, Any] = {"batch_size": 8, "complete": lambda index, reply: index % 2 == 0 and len(reply) > 3}
    expected = generate(model, tokenizer, PROMPTS, DECODINGS[0], **options)
    assert generate(model, tokenizer, PROMPTS, DECODINGS[0], **options, static=StaticDecoding(Kept())) == expected


def test_what_cannot_be_recorded_goes_on_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Recorder):
        def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

    tokenizer = build_tokenizer()
    model = build_llama(tokenizer)
    static = StaticDecoding(Refusing())
    found = generate(model, tokenizer, PROMPTS, DECODINGS[0], batch_size=5, static=static)
    assert found == generate(model, tokenizer, PROMPTS, DECODINGS[0], batch_size=5)
    assert static.replays == 0
    assert len([record for record in caplog.records if "without CUDA graphs" in record.message]) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("build", [build_llama, build_gpt2])
@pytest.mark.parametrize("decoding", DECODINGS, ids=["greedy", "beams"])
def test_graphs_on_a_gpu_reply_as_their_steps_do(build: Callable[[Any], Any], decoding: DecodingConfig) -> None:
    """In float32 replies are those of a growing cache too; bfloat16, under autocast, may choose otherwise."""
    tokenizer = build_tokenizer()
    model = build(tokenizer).to("cuda")

    def replies(graphs: str) -> tuple[list[str], int]:
        static = decoding_for(model, graphs)
        assert static is not None
        return generate(model, tokenizer, PROMPTS, decoding, batch_size=5, static=static), static.replays

    growing = generate(model, tokenizer, PROMPTS, decoding, batch_size=5)
    (found, replays), (expected, none) = replies("auto"), replies("off")
    assert (found, none) == (expected, 0)
    assert expected == growing
    assert replays > 2 * len(PROMPTS) // 5
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        assert replies("auto")[0] == replies("off")[0]


@pytest.mark.gpu
def test_logits_on_a_gpu_are_the_same_bits_whenever_they_are_computed() -> None:
    """With LLaMA-7B's heads: cuDNN's attention of one query differed from call to call."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 1024, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).to("cuda", torch.bfloat16)
    prompts = [PROMPTS[place % len(PROMPTS)] * (1 + place % 9) for place in range(128)]
    kept: list[Tensor] = []
    model.lm_head.register_forward_hook(lambda module, args, out: kept.append(out.clone()))

    def replies(graphs: str) -> list[str]:
        static = decoding_for(model, graphs)
        return generate(model, tokenizer, prompts, DecodingConfig(max_new_tokens=12), batch_size=128, static=static)

    texts, logits = replies("off"), list(kept)
    for _ in range(4):
        kept.clear()
        assert replies("off") == texts
        assert all(torch.equal(one, other) for one, other in zip(kept, logits, strict=True))
    assert replies("auto") == texts
