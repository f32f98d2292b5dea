"""A training loop in plain PyTorch: the answer that a run has to give, step by step.

No Trainer, no callbacks, and of this project only the switch of the adapter's warm-up. Every rule stands here once
more, in the words of recipe and protocol: order, accumulation, clipping, decay, schedule, warm-up, choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dual_lora import set_delta_warmup

Row = dict[str, Any]  # input_ids, labels, and whatever else the model reads
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training, written down by hand."""

    batch: int
    micro: int  # rows in memory at a time
    rate: float
    steps: int  # on which the schedule ends
    warmup: int
    decay: float
    seed: int = 0
    schedule: str = "linear"
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 1.0  # 0: none
    smoothing: float = 0.0
    delta_warmup: int | None = None  # Dual LoRA alone
    # What the project does always; switched to show that it matters.
    grouped: bool = True
    fill: bool = True  # an epoch's last batch, with the epoch's first examples
    decayed: str = "weights"  # everything, nothing
    mean: str = "batch"  # "micro": each micro-batch weighs the same
    shift: int = 1


@dataclass
class Trace:
    """What a training went through."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    items: list[list[int]] = field(default_factory=list)  # targets of each micro-batch
    widths: list[list[int]] = field(default_factory=list)  # tokens of its rows, padding included
    weights: dict[int, Weights] = field(default_factory=dict)  # after the measured steps and the last one
    measured: dict[int, dict[str, float]] = field(default_factory=dict)


def order(recipe: Recipe, lengths: Sequence[int], epoch: int) -> list[int]:
    """Return the examples of an epoch: a shuffle by seed and epoch, like lengths side by side within a window."""
    count = len(lengths)
    places = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)).tolist()
    if recipe.grouped:
        window = recipe.batch * max(1, min(50, count // (4 * recipe.batch)))
        windows = [places[start : start + window] for start in range(0, count, window)]
        for part in windows:
            part.sort(key=lambda place: -lengths[place])
        # The longest example of all comes first: what does not fit in memory shows at once.
        longest = max(range(len(windows)), key=lambda index: lengths[windows[index][0]])
        windows[0][0], windows[longest][0] = windows[longest][0], windows[0][0]
        places = [place for part in windows for place in part]
    if recipe.fill:
        missing = -count % recipe.batch
        return places + [places[index % count] for index in range(missing)]
    return places


def rate(recipe: Recipe, done: int) -> float:
    """Return the learning rate of the step after `done` completed ones."""
    if done < recipe.warmup:
        return recipe.rate * done / recipe.warmup
    share = (done - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    shape = {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}
    return recipe.rate * max(0.0, shape[recipe.schedule])


def groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return what decays and what does not: biases and the weights of norms."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) not in names:
                continue
            name = names.pop(id(parameter))  # tied weights are one
            plain = name.endswith("bias") or "Norm" in type(module).__name__
            decays = {"weights": not plain, "everything": True, "nothing": False}[recipe.decayed]
            (decayed if decays else spared).append(parameter)
    found = [{"params": decayed, "weight_decay": recipe.decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in found if group["params"]]


def padded(rows: Sequence[Row], filler: int) -> dict[str, torch.Tensor]:
    """Return the rows side by side: ids and masks (rows, tokens), labels of tokens or one for each row."""
    width = max(len(row["input_ids"]) for row in rows)
    width = -(-width // 8) * 8
    fillers = {"input_ids": filler, "attention_mask": 0, "token_type_ids": 0, "labels": -100}
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], list):
            values = [value + [fillers[name]] * (width - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    return batch


def token_losses(model: nn.Module, rows: Sequence[Row], filler: int, recipe: Recipe) -> torch.Tensor:
    """Return the loss of every token that is a target, (targets,): the model's word on the token that follows."""
    batch = padded(rows, filler)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    kept = slice(None, -recipe.shift) if recipe.shift else slice(None)
    logits, targets = logits[:, kept], batch["labels"][:, recipe.shift :]
    logs = logits[targets != -100].log_softmax(-1)
    targets = targets[targets != -100]
    right = -logs[torch.arange(len(targets)), targets]
    return (1 - recipe.smoothing) * right - recipe.smoothing * logs.mean(-1)


def row_losses(model: nn.Module, rows: Sequence[Row], filler: int, recipe: Recipe) -> torch.Tensor:
    """Return the loss of every row, (rows,): squared distance to a number, or of the right class."""
    batch = padded(rows, filler)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    if labels.is_floating_point():
        return (logits.squeeze(-1) - labels) ** 2
    return -logits.log_softmax(-1)[torch.arange(len(labels)), labels]


Losses = Callable[[nn.Module, Sequence[Row], int, Recipe], torch.Tensor]


def trained(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def train(
    model: nn.Module,
    rows: Sequence[Row],
    recipe: Recipe,
    *,
    losses: Losses,
    filler: int,
    until: int,
    measure: Callable[[nn.Module], dict[str, float]] | None = None,
    every: int = 0,
) -> Trace:
    """Train `model` for `until` steps and return what happened."""
    trace = Trace()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups(model, recipe), lr=0.0, betas=(0.9, recipe.beta2), eps=recipe.epsilon)
    lengths = [len(row["input_ids"]) for row in rows]
    epoch, ahead = 0, []
    for done in range(until):
        if not ahead:
            ahead = order(recipe, lengths, epoch)
            epoch += 1
        batch, ahead = [rows[place] for place in ahead[: recipe.batch]], ahead[recipe.batch :]
        parts = [batch[start : start + recipe.micro] for start in range(0, len(batch), recipe.micro)]
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, done)
        if recipe.delta_warmup is not None:
            set_delta_warmup(model, min(1.0, done / recipe.delta_warmup) if recipe.delta_warmup else 1.0)
        model.train()
        counts = [_targets(part, recipe) for part in parts]
        total = 0.0
        for part, count in zip(parts, counts, strict=True):
            weight = 1 / sum(counts) if recipe.mean == "batch" else 1 / (count * len(parts))
            loss = losses(model, part, filler, recipe).sum() * weight
            loss.backward()
            total += loss.item()
        squares = sum(p.grad.double().square().sum() for p in parameters if p.grad is not None)
        norm = squares.sqrt().float()
        if recipe.clip and norm > recipe.clip:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad *= recipe.clip / (norm + 1e-6)  # as torch's own clipping
        optimizer.step()
        optimizer.zero_grad()
        trace.losses.append(total)
        trace.norms.append(float(norm))
        trace.items.append(counts)
        trace.widths.append([max(len(row["input_ids"]) for row in part) for part in parts])
        if measure is not None and ((done + 1) % every == 0 or done + 1 == until):
            if recipe.delta_warmup is not None:
                set_delta_warmup(model, 1.0)  # what a saved checkpoint would be
            model.eval()
            with torch.no_grad():
                trace.measured[done + 1] = measure(model)
            trace.weights[done + 1] = trained(model)
    trace.weights[until] = trained(model)
    return trace


def _targets(rows: Sequence[Row], recipe: Recipe) -> int:
    """Return how many losses the rows have: tokens with a label, the first of a row has no place to be foretold."""
    if not isinstance(rows[0]["labels"], list):
        return len(rows)
    return sum(label != -100 for row in rows for label in row["labels"][recipe.shift :])


def best(scores: dict[int, float], highest: bool) -> int:
    """Return the step with the best score; of equal ones the first."""
    sign = 1 if highest else -1
    chosen, value = 0, -math.inf
    for step, score in sorted(scores.items()):
        if sign * score > value:
            chosen, value = step, sign * score
    return chosen


def difference(one: Weights, other: Weights) -> dict[str, float]:
    """Return for each tensor the largest difference of an element, relative to the largest element."""
    assert one.keys() == other.keys()
    return {
        name: float((one[name] - other[name]).abs().max() / other[name].abs().max().clamp_min(1e-30)) for name in one
    }
