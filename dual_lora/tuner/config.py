"""The settings of a Dual LoRA adapter, checked when the object is made."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from dual_lora.kernels import DIRECTION_ACTIVATIONS, KERNELS, STE_VARIANTS, UpdateSpec, update_spec
from dual_lora.tuner.card import say_how_to_load
from dual_lora.tuner.registration import peft_type, saves_biases

BIASES = ("none", "all", "dual_lora_only")
RELATIVE = "relative:"
# What LoraConfig has and this has under another name; with all three a LoRA's parameters and scale.
OF_LORA = {
    "r": "r_magnitude = r_direction = r/2",
    "rank": "r_magnitude = r_direction = rank/2",
    "lora_alpha": "alpha = lora_alpha/2",
    "lora_dropout": "dropout",
    "init_lora_weights": "init_std",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _help(text: str) -> dict[str, str]:
    return {"help": text}


class _SaysItsFields:
    """Answers an unknown field with those that there are, before the `__init__` that a dataclass is given."""

    def __new__(cls, *values: Any, **given: Any) -> Self:
        legal = signature(cls).parameters if given else {}
        unknown = [name for name in given if name not in legal]
        if unknown and not any(one.kind is Parameter.VAR_KEYWORD for one in legal.values()):
            hints = "".join(f"; LoRA's {name} is {OF_LORA[name]}" for name in unknown if name in OF_LORA)
            raise TypeError(  # PEFT looks for these words where it reads the file of a later version
                f"{cls.__name__}.__init__() got an unexpected keyword argument {unknown[0]!r}{hints}; its fields are "
                f"{', '.join(legal)}."
            )
        return super().__new__(cls)


@dataclass
class DualLoraConfig(_SaysItsFields, PeftConfig):
    """Settings of Dual LoRA: W = W₀ + w · α/√(r₁·r₂) · ReLU(B A) ⊙ Sign(D C), with Sign(0) = −1.

    Every field except `kernel` can change a result. Defaults follow `docs/methods/dual_lora.md`, which says for each
    whether a public source states it or whether it is a guess. r₁ = r₂ = r/2 has the parameters of LoRA at rank r.

    Raises:
        TypeError: on a field that it has not; the message names those it has, and the one of a LoraConfig's field.
        ValueError: on a value outside the legal ones; the message names the value, the legal ones and the fix.
    """

    of_lora: ClassVar[Mapping[str, str]] = OF_LORA  # for an error that names a setting before there is an object

    r_magnitude: int = field(default=16, metadata=_help("Rank r₁ of the magnitude group A (r₁×in), B (out×r₁)."))
    r_direction: int = field(default=16, metadata=_help("Rank r₂ of the direction group C (r₂×in), D (out×r₂)."))
    alpha: float = field(default=32.0, metadata=_help("α in the scale s₀ = α/√(r₁·r₂)."))
    init_std: float | str = field(
        default=0.02,
        metadata=_help(
            "σ of the Gaussian start of all four factors: a number, or 'relative:x' for the σ at which "
            "‖ΔW(0)‖/‖W₀‖ = x in expectation, per layer."
        ),
    )
    ste: str = field(
        default="clipped_gradient",
        metadata=_help(f"Straight-through rule at Sign, one of {STE_VARIANTS}. Only with direction_activation='sign'."),
    )
    magnitude_activation: str = field(default="relu", metadata=_help("'relu' or 'identity'; acts on B A."))
    direction_activation: str = field(
        default="sign",
        metadata=_help(
            f"One of {DIRECTION_ACTIVATIONS}; acts on D C. 'annealed_sign' is a tanh that `DeltaWarmupCallback` "
            "sharpens to Sign over a training, and Sign everywhere else."
        ),
    )
    subtract_start: bool = field(
        default=False,
        metadata=_help("Use ΔW − ΔW(start): the start factors are kept frozen and saved with the adapter."),
    )
    zero_start: bool = field(
        default=False,
        metadata=_help(
            "Start B at 0, so that ΔW(0) = 0 without a warm-up; ReLU then passes the gradient at M = 0 too."
        ),
    )
    normalised: float = field(
        default=0.0,
        metadata=_help(
            "c above 0: each row of ReLU(B A) ⊙ Sign(D C) is divided by its root mean square and multiplied by c · g, "
            "with g (out) learned from 0."
        ),
    )
    dropout: float = field(default=0.0, metadata=_help("Dropout probability on the adapter's input, in [0, 1)."))
    target_modules: list[str] | str | None = field(
        default=None,
        metadata=_help("Names, a regular expression or 'all-linear'. Default: by the model's family."),
    )
    rank_pattern: dict[str, int | list[int]] = field(
        default_factory=dict,
        metadata=_help(
            "Ranks of single layers, by name or regular expression: {'q_proj': 4} for r₁ = r₂ = 4, or [r₁, r₂]."
        ),
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata=_help("α of single layers, by name or regular expression.")
    )
    target_parameters: list[str] | None = field(
        default=None, metadata=_help("Not supported, see the error: Dual LoRA adapts layers, not bare parameters.")
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata=_help("Names or a regular expression of modules to leave out.")
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata=_help("Index or indices of the transformer layers to adapt. Default: all.")
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=_help("Name of the module list that layers_to_transform counts in, e.g. 'layers'.")
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Modules besides the adapters to train and save whole, e.g. a classifier.")
    )
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None,
        metadata=_help("Tokens whose embeddings to train: their indices, or by module such as {'embed_tokens': [1]}."),
    )
    bias: str = field(default="none", metadata=_help(f"Which biases to train, one of {BIASES}."))
    init_weights: bool = field(
        default=True,
        metadata=_help(
            "True: the start described by init_std. False is for tests only: σ = 1, and zeros as the start that "
            "subtract_start subtracts, so that a fresh adapter visibly changes the output."
        ),
    )
    kernel: str = field(
        default="auto",
        metadata=_help(f"How to compute, one of {KERNELS}. Not part of the method: it is not saved with the adapter."),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type()
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as PEFT's own configs do
        if isinstance(self.exclude_modules, (list, tuple)):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check_kinds()
        self._check_numbers()
        self._check_choices()

    def _check_kinds(self) -> None:
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} must be a dictionary by layers' names, such as {{'q_proj': 4}}."
                )
        self.rank_pattern = {
            key: list(rank) if isinstance(rank, tuple) else rank for key, rank in self.rank_pattern.items()
        }
        for name in ("subtract_start", "zero_start", "init_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} must be True or False (the size of the start is init_std)."
                )
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value, one_too = getattr(self, name), name != "modules_to_save"
            if not (value is None or isinstance(value, (list, tuple, set)) or (one_too and isinstance(value, str))):
                raise ValueError(
                    f"{name} = {value!r} must be a list of names, such as ['classifier']"
                    + (", or a regular expression." if one_too else ".")
                )

    def _check_numbers(self) -> None:
        ranks = {"r_magnitude": self.r_magnitude, "r_direction": self.r_direction}
        for pattern, given in self.rank_pattern.items():
            if isinstance(given, list) and len(given) != 2:
                raise ValueError(f"rank_pattern[{pattern!r}] = {given} must be one rank or [r_magnitude, r_direction].")
            for index, rank in enumerate(given if isinstance(given, list) else [given]):
                ranks[f"rank_pattern[{pattern!r}], number {index + 1},"] = rank
        for name, rank in ranks.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank <= 0:
                raise ValueError(
                    f"{name} = {rank!r} is not a rank: give a whole number of at least 1 "
                    "(r_magnitude = r_direction = r/2 has the parameters of LoRA at rank r)."
                )
        alphas = {
            "alpha": self.alpha,
            **{f"alpha_pattern[{key!r}]": value for key, value in self.alpha_pattern.items()},
        }
        for name, alpha in alphas.items():
            if not _is_number(alpha) or not 0 < alpha < float("inf"):
                raise ValueError(f"{name} = {alpha!r} must be a number above 0 (with rank 16 the usual value is 32).")
        if self.target_parameters:
            raise ValueError(
                f"target_parameters = {self.target_parameters!r}: Dual LoRA adapts linear layers, not bare parameters "
                "such as the experts of a mixture; name layers in target_modules (attention, shared experts)."
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout!r} must be a number in [0, 1); 0 turns it off.")
        self._check_start()
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                f"layers_to_transform = {self.layers_to_transform!r} has no effect on target_modules = "
                f"{self.target_modules!r}: give target_modules as a list of names."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"layers_pattern = {self.layers_pattern!r} acts only with layers_to_transform: give both or neither."
            )

    def _check_start(self) -> None:
        normalised: Any = self.normalised
        if not _is_number(normalised) or not 0 <= normalised < float("inf"):
            raise ValueError(f"normalised = {normalised!r} must be a number of at least 0; 0 turns it off.")
        zero = {"zero_start": self.zero_start, "normalised": normalised > 0, "subtract_start": self.subtract_start}
        given = [name for name, is_given in zero.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: each alone makes ΔW(0) = 0; give one of them.")
        if self.relative_init_std() is not None and (self.zero_start or normalised):
            raise ValueError(
                f"init_std = {self.init_std!r} asks for a size of ΔW(0), which {given[0]} makes 0; give a number, or "
                f"leave out {given[0]}."
            )

    def _check_choices(self) -> None:
        for name, legal in {"bias": BIASES, "kernel": KERNELS}.items():
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known; use one of {', '.join(map(repr, legal))}"
                )
        if self.bias != "none" and not saves_biases():
            raise ValueError(f"bias={self.bias!r} needs PEFT 0.21: earlier ones would train biases and not save them.")
        self.spec()  # raises on what it does not know

    def relative_init_std(self) -> float | None:
        """Return x of `init_std='relative:x'`, or None where `init_std` is a plain σ."""
        value: Any = self.init_std
        fix = f"give a σ above 0 such as 0.02, or '{RELATIVE}x' with x above 0 such as '{RELATIVE}0.07'"
        if isinstance(value, bool) or (isinstance(value, str) and not value.startswith(RELATIVE)):
            raise ValueError(f"init_std = {value!r} cannot be read: {fix}.")
        try:
            number = float(value.removeprefix(RELATIVE)) if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"init_std = {value!r} cannot be read: {fix}.") from None
        if not 0 < number < float("inf"):
            raise ValueError(f"init_std = {value!r} is out of range: {fix}.")
        return number if isinstance(value, str) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that make up the adapter: without `kernel`, and sets in sorted order so that equal
        adapters have equal files."""
        fields = super().to_dict()
        fields.pop("kernel")
        return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}

    def of_layer(self, name: str) -> DualLoraConfig:
        """Return the settings of the layer `name`: these, with what `rank_pattern` and `alpha_pattern` say of it."""
        rank = self.rank_pattern.get(get_pattern_key(self.rank_pattern, name))
        alpha = self.alpha_pattern.get(get_pattern_key(self.alpha_pattern, name), self.alpha)
        if rank is None and alpha == self.alpha:
            return self
        magnitude, direction = rank if isinstance(rank, list) else (rank, rank)
        its = copy.copy(self)
        its.r_magnitude, its.r_direction = magnitude or self.r_magnitude, direction or self.r_direction
        its.alpha = alpha
        return its

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and into README.md how such an adapter is loaded."""
        super().save_pretrained(save_directory, **kwargs)
        say_how_to_load(Path(save_directory), self.task_type)

    def spec(self, transposed: bool = False) -> UpdateSpec:
        """Return the options of the kernels. Raises `ValueError` for unknown ones, or a kernel that lacks them."""
        magnitude = (
            "closed_relu" if self.zero_start and self.magnitude_activation == "relu" else self.magnitude_activation
        )
        return update_spec(
            self.ste, magnitude, self.direction_activation, transposed, self.kernel, float(self.normalised)
        )

    @property
    def starts_at_base(self) -> bool:
        """Whether ΔW(0) = 0, so that no warm-up has to hide it."""
        return bool(self.subtract_start or self.zero_start or self.normalised)

    @property
    def initial_scaling(self) -> float:
        """s₀ = α/√(r₁·r₂), paper equation for ΔW."""
        return self.alpha / (self.r_magnitude * self.r_direction) ** 0.5
