"""Measures of an update, during training and from saved adapters. Off the hot path: `diagnostics=on`."""

from dual_lora.diagnostics.callback import DiagnosticsCallback, read_report
from dual_lora.diagnostics.full_weights import full_fine_tuning
from dual_lora.diagnostics.measures import agreement, numerical_rank, stable_rank
from dual_lora.diagnostics.updates import adapted_layers, trained_layers, whole_update
