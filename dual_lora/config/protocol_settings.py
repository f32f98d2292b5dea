"""The typed settings of a protocol, with their defaults; the files of `configs/protocol/` state them for each task."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from dual_lora.config.bounds import BelowOne, Count, Exponent, Fraction, Positive, Seed

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
Scoring = Literal["generate", "likelihood", "cloze", "classify"]
Checkpoint = Literal["last", "best_loss", "best_dev", "best_heldout"]


@dataclass(frozen=True, config=_STRICT)
class DecodingConfig:
    """How replies are generated. Greedy unless `beams` > 1."""

    beams: Positive = 1
    max_new_tokens: Positive = 32
    length_penalty: Exponent = 1.0
    no_repeat_ngram_size: Count = 0
    # Of beams. True: once `beams` replies have ended. False: once the best running one is, at its length, below the
    # worst of them. never: once no running one can get above it, whatever follows.
    early_stopping: Literal[True, False, "never"] = False


@dataclass(frozen=True, config=_STRICT)
class BaseConfig:
    """How the published runs held the base model of a family, where that is not what transformers would do."""

    dtype: Literal["float32", "bfloat16"] | None = None
    dropout: BelowOne | None = None


@dataclass(frozen=True, config=_STRICT)
class ProtocolConfig:
    """What makes two numbers comparable: prompt, loss mask, decoding, reference form, checkpoint rule."""

    name: str  # paper, strict, restricted
    task: str  # the family it belongs to: commonsense, e2e, webnlg, dart, glue
    prompt: str = "default"
    loss_on: Literal["answer", "all"] = "answer"
    append_end: bool = True
    max_length_tokens: Positive | None = None  # None: the recipe's
    reference_form: str | None = None
    drop_repeated_examples: bool = False
    validation_examples: Positive | None = None  # split off the training set; None: the data's own validation split
    validation_fraction: Fraction | None = None  # GLUE: the share of the training set that is held out
    validation_seed: Seed = 42
    # Which validation items a run looks at: all, those that settings are chosen by, or those that never choose any.
    validation_part: Literal["all", "select", "report"] = "all"
    selection_examples: Positive | None = None  # of the part "select"; the rest of the split is the part "report"
    report_examples: Positive | None = None  # of the part "report", where both are split off the training set
    # recipe: as the recipe says; None: once per epoch
    validation_every_steps: Positive | Literal["recipe"] | None = None
    # The one the headline shows. best_loss: lowest validation loss. best_dev, best_heldout: the epoch with the best
    # score on the development set (as published) or on a held-out part of the training set (honest).
    checkpoint: Checkpoint = "last"
    also_report: tuple[Checkpoint, ...] = ()  # further checkpoints that are scored and recorded
    scorings: tuple[Scoring, ...] = ("generate",)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    mnli_start_allowed: bool = False
    base: dict[str, BaseConfig] = dataclasses.field(default_factory=dict, hash=False)  # by the model's family
