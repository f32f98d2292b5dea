"""PEFT's suites for decoders, encoder-decoders, feature extractors and classifiers, run with Dual LoRA.

The models that PEFT's tests load from the hub are replaced by tiny random ones of the same families, made here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from dual_lora import DualLoraConfig
from tests.peft_suite.upstream import parameters, upstream, with_parameters
from tests.unit.tuner.tiny_adapted_model import BERT_SIZES

MODEL, CASES = "model_id", "config_cls,config_kwargs"
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {**BERT_SIZES, **SPECIAL}
MODELS: dict[str, dict[str, Callable[[], PreTrainedModel]]] = {
    "decoder_models": {
        "LlamaForCausalLM": lambda: LlamaForCausalLM(LlamaConfig(**BERT, num_key_value_heads=1)),
        "GPT2LMHeadModel": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, **SPECIAL)
        ),
    },
    "encoder_decoder_models": {
        "T5ForConditionalGeneration": lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
        ),
        "BartForConditionalGeneration": lambda: BartForConditionalGeneration(
            BartConfig(
                vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64,
                decoder_start_token_id=2, forced_eos_token_id=2, **SPECIAL,
            )
        ),
    },
    "feature_extraction_models": {
        "BertModel": lambda: BertModel(BertConfig(**BERT)),
        "DebertaV2Model": lambda: DebertaV2Model(DebertaV2Config(**BERT, relative_attention=True)),
    },
    "seq_classifier": {
        "BertForSequenceClassification": lambda: BertForSequenceClassification(BertConfig(**BERT)),
        "LlamaForSequenceClassification": lambda: LlamaForSequenceClassification(
            LlamaConfig(**BERT, num_key_value_heads=1)
        ),
    },
}  # fmt: skip
CLASSES = {
    "decoder_models": ("TestDecoderModels", "CAUSAL_LM"),
    "encoder_decoder_models": ("TestEncoderDecoderModels", "SEQ_2_SEQ_LM"),
    "feature_extraction_models": ("TestPeftFeatureExtractionModel", "FEATURE_EXTRACTION"),
    "seq_classifier": ("TestSequenceClassificationModels", "SEQ_CLS"),
}
# These assert that a fresh adapter leaves the output as it was. Dual LoRA promises that only with subtract_start.
ASSERTS_START_AT_BASE = {"test_disable_adapter", "test_unload_adapter"}
FOLDER = Path(tempfile.mkdtemp(prefix="peft_suite_"))


def folder_of(name: str) -> str:
    return str(FOLDER / f"tiny-random-{name}")


@pytest.fixture(scope="module")
def saved_models() -> None:
    for models in MODELS.values():
        for name, make in models.items():
            torch.manual_seed(0)
            make().save_pretrained(folder_of(name))


def taken_over(suite: str) -> type:
    """Return PEFT's class of tests with our models and our method."""
    name, task = CLASSES[suite]
    original = getattr(upstream(f"test_{suite}"), name)
    case = {"task_type": task, "target_modules": None, "r_magnitude": 4, "r_direction": 4, "alpha": 1}
    models = [folder_of(name) for name in MODELS[suite]]
    tests = {}
    for test, function in vars(original).items():
        if test.startswith("test_") and parameters(function) >= {MODEL, CASES} and "prompt_learning" not in test:
            settings = {**case, "init_std": 0.1, "subtract_start": test in ASSERTS_START_AT_BASE}
            given = {MODEL: models, CASES: [(DualLoraConfig, settings)]}
            tests[test] = with_parameters(function, given, {MODEL: list(MODELS[suite]), CASES: ["Dual LoRA"]})
    inherited = {key: value for key, value in vars(original).items() if not key.startswith(("test_", "__"))}
    return type(name, original.__bases__, {**inherited, **tests})


@pytest.mark.slow
@pytest.mark.usefixtures("saved_models")
class TestDecoders(taken_over("decoder_models")):  # type: ignore[misc]
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("saved_models")
class TestEncoderDecoders(taken_over("encoder_decoder_models")):  # type: ignore[misc]
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("saved_models")
class TestFeatureExtractors(taken_over("feature_extraction_models")):  # type: ignore[misc]
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("saved_models")
class TestClassifiers(taken_over("seq_classifier")):  # type: ignore[misc]
    pass


def test_the_whole_upstream_suites_were_taken_over() -> None:
    """A renamed parameter list upstream would otherwise leave empty classes that pass."""
    counts = {
        cls.__name__: len([name for name in dir(cls) if name.startswith("test_")])
        for cls in (TestDecoders, TestEncoderDecoders, TestFeatureExtractors, TestClassifiers)
    }
    assert counts["TestDecoders"] >= 30
    assert counts["TestEncoderDecoders"] >= 25
    assert counts["TestFeatureExtractors"] >= 15
    assert counts["TestClassifiers"] >= 10
