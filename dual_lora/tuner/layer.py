"""A linear layer with Dual LoRA adapters.

One class serves `nn.Linear`, GPT-2's transposed `Conv1D` and the quantized or partitioned forms of `nn.Linear`. Which
way computes a call is decided by `dual_lora.kernels.select_kernel`, and nowhere else:

- one GEMM: W₀ + ΔW is built for the length of the product, and nothing of that size is kept for backward;
- separate update: `base_layer(x) + x ΔWᵀ`, which never reads the base weight. Where only dropout on the adapter's input
  is in the way of one GEMM, one call computes both products.

Merging: W₀ + ΔW rounded to the base's dtype cannot be undone by subtracting ΔW: even in float32 the last bits differ.
So a merged layer keeps W₀, in host memory if the weight is on an accelerator (a merged 7B model then takes its adapted
weights once more in host memory, and nothing on the card). `merge_and_unload` drops that copy by layer.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dual_lora.kernels import (
    KernelChoice,
    Update,
    UpdateSpec,
    apply_update,
    apply_update_with_dropout,
    form_update,
    select_kernel,
)
from dual_lora.kernels.spec import Factors
from dual_lora.tuner.base_weight import device_of, is_available, mergeable_weight, resolve_init_std
from dual_lora.tuner.config import DualLoraConfig
from dual_lora.tuner.factor import FACTORS, ROW_SCALE, STARTS, Factor
from dual_lora.tuner.mixed_batch import forward_of_rows
from dual_lora.tuner.quantized import is_quantized, write_quantized


class DualLoraLinear(nn.Module, BaseTunerLayer):
    """A frozen linear layer plus Dual LoRA adapters, each W₀ → W₀ + w · s₀ · ReLU(B A) ⊙ Sign(D C).

    Per adapter name a `Factor` in `dual_lowrank_magnitude_A` (r₁×in), `dual_lowrank_magnitude_B` (out×r₁),
    `dual_lowrank_direction_C` (r₂×in) and `dual_lowrank_direction_D` (out×r₂), float32 unless
    `autocast_adapter_dtype=False` was given; under `subtract_start` their frozen starts in `dual_lowrank_start_…`,
    under `normalised` g (out, 1) in `dual_lowrank_row_scale`.
    `init_std[name]` is the resolved σ (None for factors that were made on the meta device and then loaded),
    `scaling[name]` is s₀, `spec[name]` the options of the kernels.

    `delta_warmup` is w, plain Python state: 1 on creation, changed by `set_delta_warmup` alone, never saved.
    `loss_scale` likewise (`set_loss_scale`), and `temperature` of an annealed Sign, None outside a training step.
    `scaling_in_memory` holds, while `warmup.scaling_in_memory` lasts, what the kernels read instead, and `keeps_weight`
    is true while `kept_weights` says so.
    """

    cast_input_dtype_enabled = True  # PEFT's switch; no input is cast here, except by autocast
    adapter_layer_names = (*FACTORS, ROW_SCALE)
    other_param_names = (*STARTS, "dual_lowrank_dropout", "scaling", "spec", "init_std", "r_magnitude", "r_direction")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: DualLoraConfig, backend: Any | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.quantization_backend = backend
        for name in (*FACTORS, *STARTS, ROW_SCALE):
            setattr(self, name, nn.ModuleDict())
        self.dual_lowrank_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.spec: dict[str, UpdateSpec] = {}
        self.init_std: dict[str, float | None] = {}
        self.r_magnitude: dict[str, int] = {}
        self.r_direction: dict[str, int] = {}
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.transposed = isinstance(self.get_base_layer(), Conv1D)
        self.delta_warmup = 1.0
        self.warmup_was_set = False
        self.loss_scale = 1.0
        self.temperature: Tensor | None = None
        self.scaling_in_memory: dict[str, Tensor] = {}
        self.keeps_weight = False
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self._unmerged_weight: Tensor | None = None
        self.unmerged_layer: list[nn.Module] = []  # a quantized one; as an attribute it would be part of the model
        self.update_layer(adapter_name, config)

    # ---------------------------------------------------------------- adapters

    def update_layer(self, adapter_name: str, config: DualLoraConfig, inference_mode: bool = False) -> None:
        """Add (or replace) the adapter `adapter_name`. Its factors are drawn on CPU, so a seed fixes them."""
        sigma = resolve_init_std(config, self.get_base_layer(), self.quantization_backend)
        device = "meta" if sigma is None else "cpu"
        values = [torch.empty(shape, device=device) for shape in self._factor_shapes(config)]
        for value in values:
            nn.init.normal_(value, std=sigma or 0.0)
        if config.zero_start and config.init_weights:
            nn.init.zeros_(values[1])
        for name, value in zip(FACTORS, values, strict=True):
            getattr(self, name)[adapter_name] = Factor(value, trained=True)
        if config.subtract_start:
            for name, value in zip(STARTS, values, strict=True):
                start = value.clone() if config.init_weights else torch.zeros_like(value)
                getattr(self, name)[adapter_name] = Factor(start, trained=False)
        if config.normalised:
            scale = torch.full((self.out_features, 1), 0.0 if config.init_weights else 1.0, device=device)
            getattr(self, ROW_SCALE)[adapter_name] = Factor(scale, trained=True)
        dropout = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()
        self.dual_lowrank_dropout[adapter_name] = dropout
        self.scaling[adapter_name] = config.initial_scaling
        self.spec[adapter_name] = config.spec(self.transposed)
        # PEFT's low_cpu_mem_usage puts the factors on the meta device as they are assigned.
        self.init_std[adapter_name] = None if self._held(adapter_name)[0].weight.is_meta else sigma
        self.r_magnitude[adapter_name], self.r_direction[adapter_name] = config.r_magnitude, config.r_direction
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _factor_shapes(self, config: DualLoraConfig) -> list[tuple[int, int]]:
        magnitude, direction = config.r_magnitude, config.r_direction
        return [
            (magnitude, self.in_features),
            (self.out_features, magnitude),
            (direction, self.in_features),
            (self.out_features, direction),
        ]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own would also round fresh float32 factors to the base's dtype and widen them again later: a
        # half-precision start, and half-precision factors for good under transformers' own load_adapter.
        target = device or device_of(self.get_base_layer())
        for factor in self._held(adapter_name):
            if target is not None and not factor.weight.is_meta:
                factor.to(target)

    def adapter_tensors(self) -> list[Tensor]:
        """Return all factors and start factors of all adapters."""
        return [factor.weight for name in self.dual_lowrank_magnitude_A for factor in self._held(name)]

    def move_adapters(self, device: torch.device) -> None:
        """Put every adapter of this layer on `device`."""
        for adapter_name in self.dual_lowrank_magnitude_A:
            self._move_adapter_to_device_of_base_layer(adapter_name, device)

    def _held(self, adapter_name: str) -> list[Factor]:
        groups = [getattr(self, name) for name in (*FACTORS, *STARTS, ROW_SCALE)]
        return [group[adapter_name] for group in groups if adapter_name in group]

    def factors(self, adapter_name: str) -> Factors:
        """Return (A, B, C, D) of one adapter."""
        a, b, c, d = [self._modules[name][adapter_name]() for name in FACTORS]
        return a, b, c, d

    def start_factors(self, adapter_name: str) -> Factors | None:
        """Return the frozen (A, B, C, D) that `subtract_start` subtracts, or None without it."""
        if adapter_name not in self.dual_lowrank_start_magnitude_A:
            return None
        a, b, c, d = [self._modules[name][adapter_name]() for name in STARTS]
        return a, b, c, d

    # ---------------------------------------------------------------- computation

    def update(self, adapter_name: str) -> Update:
        """Return what one adapter adds to the frozen weight, at the current warm-up, as the kernels take it."""
        scaling = self.delta_warmup * self.scaling[adapter_name]
        factors, start = self.factors(adapter_name), self.start_factors(adapter_name)
        spec = self.spec[adapter_name]
        row_scale = self._modules[ROW_SCALE][adapter_name]() if spec.normalised else None
        return Update(factors, start, scaling, spec, None, False, self.loss_scale, self.temperature, row_scale)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return what the adapter currently adds to its frozen weight.

        w · s₀ · ReLU(B A) ⊙ Sign(D C), less the same of the start factors under `subtract_start`.

        Shape: that of the base weight, (out_features, in_features), or (in_features, out_features) for Conv1D.
        Dtype: float32; D C is never formed in half precision, where rounding near zero flips signs.
        Not differentiable. Partitioned factors (ZeRO-3, FSDP2) are gathered, so every rank has to call it.
        """
        held = self._held(adapter)
        with gather_params_ctx([factor.weight for factor in held], modifier_rank=None):
            # Called where it is offloaded only: after a call ZeRO-3 would free it.
            tensors = [factor() if factor.weight.is_meta else factor.weight for factor in held]
            a, b, c, d, *more = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors)
            scaling = self.delta_warmup * self.scaling[adapter]
            start, row_scale = (None, more[0]) if len(more) == 1 else (tuple(more) or None, None)
            delta = form_update(Update((a, b, c, d), start, scaling, self.spec[adapter], row_scale=row_scale))
        return delta.T if self.transposed else delta

    def base_weight_is_plain(self) -> bool:
        """Return whether the base layer is only a matrix product with a weight that is available in full.

        Not so for quantized and partitioned weights, subclasses with a forward of their own, another adapter in
        between, base layers with hooks (offloading), which only a call of the base layer runs, and weights that are
        trained as well: the one GEMM has no gradient for them.
        """
        base = self.base_layer
        return (
            type(base) in (nn.Linear, Conv1D)
            and not (base._forward_pre_hooks or base._forward_hooks or "forward" in vars(base))
            and not is_quantized(base)
            and is_available(base)
            and not (base.weight.requires_grad and torch.is_grad_enabled())
        )

    def choose_kernel(self, device: torch.device, adapters: list[str]) -> KernelChoice:
        """Return how a call with these active adapters is computed on `device`, in the current train or eval mode.

        Raises:
            ValueError: `kernel='fused'` was requested and is not possible.
        """
        dropouts = [self.dual_lowrank_dropout[name] for name in adapters]
        return select_kernel(
            self.spec[adapters[0]].kernel,
            device,
            weight_is_plain=self.base_weight_is_plain(),
            dropout=max(getattr(dropout, "p", 0.0) if self.training else 0.0 for dropout in dropouts),
            active_adapters=len(adapters),
        )

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Return x (W₀ + Σ ΔW)ᵀ + b over the active adapters, shape (..., out_features).

        adapter_names: the adapter of each row of x instead, "__base__" for none (`DualLoraModel` gives it).

        Raises:
            ValueError: `adapter_names` has another length than x, or an adapter is merged.
        """
        if adapter_names is not None:
            return forward_of_rows(self, x, adapter_names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [name for name in self.active_adapters if name in self.dual_lowrank_magnitude_A]
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(x, *args, **kwargs)
        choice = self.choose_kernel(x.device, active)
        if choice.one_gemm and self._fits_base_dtype(x):
            return apply_update(x, self.base_layer.weight, self.base_layer.bias, self._step_update(active[0]))
        dropout = self.dual_lowrank_dropout[active[0]]
        if choice.reads_weight and self.training and type(dropout) is nn.Dropout and self._fits_base_dtype(x):
            weight, bias = self.base_layer.weight, self.base_layer.bias
            return apply_update_with_dropout(x, weight, bias, self._step_update(active[0]), dropout.p)
        result = self.base_layer(x, *args, **kwargs)
        for name in active:
            result = apply_update(self.dual_lowrank_dropout[name](x), None, None, self._step_update(name), base=result)
        return result

    def _step_update(self, adapter_name: str) -> Update:
        update, held = self.update(adapter_name), self.scaling_in_memory.get(adapter_name)
        if held is None and not self.keeps_weight:
            return update
        return update._replace(in_memory=held, keeps_weight=self.keeps_weight)

    def _fits_base_dtype(self, x: Tensor) -> bool:
        # If dtypes do not match, the base layer is called and raises the error that it raises without an adapter.
        return x.dtype == self.base_layer.weight.dtype or torch.is_autocast_enabled(x.device.type)

    # ---------------------------------------------------------------- merging

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write round(W + Σ ΔW) of the given (default: the active) adapters over the base weight, in place.

        The sum is formed in float32. Warns when the warm-up w is not 1, since the merged weight is then not the trained
        one, and of a quantized base, whose steps the sum is rounded to.

        Raises:
            NotImplementedError: PEFT cannot quantize this base again, or only a part of it is in this process.
            ValueError: with `safe_merge`, if the merged weight is not finite; the base weight is then untouched.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.dual_lowrank_magnitude_A]
        if not names:
            return
        base = self.get_base_layer()
        weight = mergeable_weight(base, self.quantization_backend)
        if self.delta_warmup != 1:
            warnings.warn(
                f"merging at warm-up factor {self.delta_warmup}, so only this share of the update is merged; call "
                "dual_lora.set_delta_warmup(model, 1) first to merge what was trained.",
                stacklevel=3,
            )
        # The sum is wider than the weight for half precision, and float64 stays float64.
        merged = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for name in names:
            merged = merged + self.get_delta_weight(name).to(merged.device)
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken")
        if is_quantized(base):
            write_quantized(self, merged)
        else:
            if self._unmerged_weight is None:
                self._unmerged_weight = weight.cpu() if weight.device.type != "cpu" else weight.clone()
            weight.copy_(merged)
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put W₀ back in place of the merged weight, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=3)
            return
        if self.unmerged_layer:
            self.base_layer = self.unmerged_layer.pop()
        else:
            assert self._unmerged_weight is not None
            mergeable_weight(self.get_base_layer()).copy_(self._unmerged_weight)
            self._unmerged_weight = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: the update is additive, so PEFT can approximate it by a LoRA (of far higher rank)."""
        return True

    def __repr__(self) -> str:
        return "dual_lora." + super().__repr__()
