"""What must not change a training, and what must: memory savers on one side, every setting of the YAML on the other."""

from __future__ import annotations

import tempfile

import pytest
import torch

from tests.contracts import cells

# Adam divides by the gradient's size, so rounding of gradients near 0 moves single weights by a whole step.
SAME_LOSS = 2e-3  # nats per step, where only the order of sums differs
HALF_LOSS = 0.1  # nats per step under bfloat16 autocast


def differences(cell: cells.Cell, losses: list[float]) -> float:
    expected = cells.trained_losses(cell)
    assert len(losses) == len(expected) == cells.STEPS
    return max(abs(a - b) for a, b in zip(losses, expected, strict=True))


def test_gradient_checkpointing_changes_nothing(training_cell):
    arguments = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert differences(training_cell, cells.trained(training_cell, **arguments)[1]) <= SAME_LOSS


def test_accumulation_changes_nothing(training_cell):
    """Two accumulated batches of four are one of eight."""
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert differences(training_cell, cells.trained(training_cell, **arguments)[1]) <= SAME_LOSS


def test_autocast_changes_little(training_cell):
    assert differences(training_cell, cells.trained(training_cell, bf16=True)[1]) <= HALF_LOSS


def test_optimizer_groups_are_whole(training_cell):
    """Every trained tensor is in one group, no group is empty, decay and rates reach the tensors they should."""
    model = training_cell.fresh()
    with tempfile.TemporaryDirectory() as folder:
        groups = cells.trainer(training_cell, model, folder).create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert all(group["params"] for group in groups), "an empty parameter group"
    assert sorted(found) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    settings = training_cell.config.optimizer.settings
    ratio, slow = settings.get("ratio", 1.0), settings.get("direction_rate", 1.0)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            decays = parameter.ndim > 1
            if parameter.ndim > 1 or name.endswith("bias"):
                assert (group["weight_decay"] > 0) == decays, f"weight decay {group['weight_decay']} on {name}"
            fast = "lora_B" in name or (ratio != 1 and parameter.ndim == 1)
            share = ratio if fast else slow if "_direction_" in name else 1
            assert group["lr"] == pytest.approx(cells.RECIPE.learning_rate * share), name


# What a setting is changed to. A tuple adds the settings, and the factor on the loss, of the regime in which it acts.
OTHER_VALUES = {
    "r": 3,
    "r_magnitude": 5,
    "r_direction": 5,
    "init_r": 40,
    "target_r": 10,
    "alpha": 11.0,
    "lora_alpha": 11,
    "randlora_alpha": 100,
    "init_std": 0.1,
    "ste": ("identity", {"init_std": 1.0}, 1e5),
    "subtract_start": True,
    "magnitude_activation": "identity",
    "direction_activation": "identity",
    "delta_warmup": False,
    "delta_warmup_steps": 4,
    "use_dora": False,
    "use_rslora": False,
    "init_lora_weights": True,
    "d_initial": 0.4,
    "tinit": 2,
    "tfinal": 1,
    "deltaT": 2,
    "orth_reg_weight": 0.1,
    "zero_start": False,
    "normalised": 0.0,
    "optimizer.direction_rate": 1.0,
    "optimizer.ratio": 2.0,
    "optimizer.rank": 2,
    "optimizer.scale": 0.5,
    "optimizer.update_proj_gap": 1,
    "optimizer.proj_type": "reverse_std",
}


def test_training_repeats(training_cell):
    """The same seed ends in the same bits, so that any difference below is the setting's."""
    model, losses = cells.trained(training_cell)
    assert losses == cells.trained_losses(training_cell)
    assert torch.equal(cells.logits(model, training_cell.family), cells.trained_logits(training_cell))


def test_setting_changes_the_result(setting_cell, setting):
    """Each line of a YAML does something: another value there ends in other logits."""
    value, regime, factor = other_value(setting_cell, setting)
    reference = setting_cell.changed(**regime) if regime else setting_cell
    options = {"loss_factor": factor} if factor != 1 else {}
    usual = (
        cells.logits(cells.trained(reference, **options)[0], reference.family)
        if regime or options
        else cells.trained_logits(reference)
    )
    changed = cells.logits(cells.trained(reference.changed(**{setting: value}), **options)[0], reference.family)
    assert not torch.equal(changed, usual), f"{setting}={value} changes nothing"


def other_value(cell: cells.Cell, setting: str):
    """Return (other value, settings of the regime in which it acts, factor on the loss)."""
    if setting == "target_modules":
        return [cells.TARGETS[cell.family][0]], {}, 1.0
    if "dropout" in setting:
        return 0.5, {}, 1.0
    found = OTHER_VALUES[setting]
    value, regime, factor = found if isinstance(found, tuple) else (found, {}, 1.0)
    if cell.method.startswith("dual_lora_"):
        # An ablation must differ from the method it is taken off.
        parent = cells.method_config("dual_lora")
        value = parent.settings[setting] if setting in parent.settings else getattr(parent, setting, value)
    return value, regime, factor
