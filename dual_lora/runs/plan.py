"""What a run would be, by arithmetic alone: no weights, no data from the hub; instant also for a 70B model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dual_lora import methods, models
from dual_lora.config.schedule import planned_obstacle
from dual_lora.runs.cards import GIB, Card, planned_card
from dual_lora.runs.disk_space import space
from dual_lora.runs.hours import accuracy, gpu_hours, rounded
from dual_lora.runs.phases import TRAINING, Peak, peak, peaks, setup
from dual_lora.runs.resolve import Resolved, adapted_layers, budget_note
from dual_lora.tasks.lengths import Lengths, Longest, longest, planned_lengths
from dual_lora.tasks.sizes import Fetched, to_fetch


def plan(resolved: Resolved, card: Card | None = None) -> dict[str, Any]:
    """Return parameters and the estimated peak of one device's memory on a card (default: that of `planned_card`)."""
    config = resolved.config
    card = planned_card(config.plan)[0] if card is None else card
    total = models.count_parameters(config.model, resolved.task.head)
    lengths = text_lengths(resolved)
    phases = peaks(resolved, lengths, card)
    return {
        "parameters": total,
        "trainable": _trainable(resolved, total),
        "lengths": lengths,
        "peak": peak(phases),
        "training": [phase for phase in phases if phase.phase == TRAINING],
        "space": space(resolved, setup(resolved, card)),
        "gpu_hours": gpu_hours(resolved, lengths, card),
    }


def text_lengths(resolved: Resolved) -> Lengths:
    """Return how long a run's texts are: exactly the longest if data and tokenizer are on this machine."""
    config = resolved.config
    lengths = planned_lengths(config, resolved.task)
    try:
        file = models.tokenizer_file(config.model) if config.data.source == "local" else None
    except models.ModelError:
        return lengths
    if file is None:
        return lengths
    return dataclasses.replace(lengths, exact=_exact(resolved, file))


_known: dict[tuple[Any, ...], Longest] = {}  # of a sweep whose runs have the same texts


def _exact(resolved: Resolved, file: Path) -> Longest:
    config = resolved.config
    named = config.task, config.protocol, config.profile, config.data, config.recipe.max_length_tokens
    key = (file, resolved.batches.per_device, config.method.trains == "nothing", *map(repr, named))
    if key not in _known:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        _known[key] = longest(config, resolved.task, tokenizer, resolved.batches.per_device)
    return _known[key]


def _trainable(resolved: Resolved, total: int) -> int:
    method, model = resolved.config.method, resolved.config.model
    if method.trains == "nothing":
        return 0
    return methods.planned_parameters(
        method, adapted_layers(resolved.config), total=total, biases=models.count_biases(model)
    )


def advice(resolved: Resolved, lengths: Lengths, card: Card) -> str:
    """Return the first change of launch settings with which a run fits a card; empty if it does, or nothing does."""

    def fits(**settings: Any) -> bool:
        launch = dataclasses.replace(resolved.config.launch, **settings)
        changed = dataclasses.replace(resolved.config, launch=launch)
        rows = settings.get("per_device_batch", resolved.batches.per_device)
        batches = dataclasses.replace(resolved.batches, per_device=rows)
        found = peak(peaks(dataclasses.replace(resolved, config=changed, batches=batches), lengths, card))
        return found.bytes <= card.room()

    rows = resolved.batches.per_device
    smaller = [size for size in range(rows - 1, 0, -1) if rows % size == 0]
    in_training: list[dict[str, Any]] = [{}, *({"per_device_batch": size} for size in smaller)]
    in_training += [{"gradient_checkpointing": True, "per_device_batch": size} for size in (rows, *smaller)]
    evaluated = [phase.batch.rows for phase in peaks(resolved, lengths, card) if phase.phase != TRAINING]
    halved = [max(evaluated, default=0) >> times for times in range(1, max(evaluated, default=0).bit_length())]
    for in_evaluation in ({}, *({"eval_batch": size} for size in halved)):
        for settings in in_training:
            settings = settings | in_evaluation
            if settings and fits(**settings):
                return " ".join(f"launch.{name}={str(value).lower()}" for name, value in settings.items())
    return "launch=fsdp with more GPUs (docs/launching.md)"


def describe(resolved: Resolved) -> str:
    """Return the plan as text for a person."""
    config, batches = resolved.config, resolved.batches
    card, here = planned_card(config.plan)
    facts = plan(resolved, card)
    share, hours = 100 * facts["trainable"] / facts["parameters"], rounded(facts["gpu_hours"])
    lines = [
        f"run {resolved.run_id}: model={config.model.name} task={config.task.name} method={config.method.name} "
        f"protocol={config.protocol.name} profile={config.profile.name} seed={config.seed}",
        f"  recipe      {config.recipe.name}: learning rate {config.recipe.learning_rate:g}, "
        f"{config.recipe.epochs:g} epochs, warm-up {resolved.warmup_steps} steps",
        f"  parameters  {facts['parameters']:,}, trainable {facts['trainable']:,} ({share:.3f} %) without a head",
        f"  steps       {resolved.steps:,} of batch {batches.global_batch} = {batches.world_size} device(s) × "
        f"{batches.per_device} × {batches.accumulation} accumulated, {resolved.train_examples:,} examples",
        *_memory_lines(resolved, facts, card, here),
        f"  time        about {hours:g} GPU-hours on {card.name} ({accuracy([config.model.name])})",
        f"  disk        {_size(facts['space'].checkpoints)} of checkpoints, {_size(facts['space'].stays)} stay",
    ]
    fetched = _to_fetch([facts["space"].weights], [to_fetch(config)])
    if fetched:
        lines.append(f"  download    {fetched}")
    no_graphs = planned_obstacle(config.launch, config.method)
    if no_graphs is not None and config.method.trains != "nothing":
        lines.append(f"  graphs      none: {no_graphs}")
    if resolved.budget is not None:
        lines.append(f"  budget      {budget_note(resolved.budget)}")
    return "\n".join(lines)


def describe_sweep(runs: Sequence[Resolved], titles: Sequence[str]) -> str:
    """Return the plan of several runs: a line for those that differ in the seed only, and what all take together.

    titles: of each run, without its seed.
    """
    card, here = planned_card(runs[0].config.plan)
    groups: dict[str, list[Resolved]] = {}
    for title, run in zip(titles, runs, strict=True):
        groups.setdefault(title, []).append(run)
    lines, hours, largest, stays = [], 0.0, 0, 0
    weights, data = dict[str, int](), dict[str, Fetched]()
    for title, same in groups.items():
        facts = plan(same[0], card)
        found, each = facts["peak"], rounded(facts["gpu_hours"])
        memory = f"{found.bytes / GIB:.1f} GiB"
        if facts["training"] and found.phase != TRAINING:
            memory = f"{peak(facts['training']).bytes / GIB:.1f} GiB in training, {memory} in {found.phase}"
        count = len({run.run_id for run in same}) if same[0].identity else len(same)
        hours, stays = hours + count * each, stays + count * facts["space"].stays
        largest = max(largest, facts["space"].checkpoints)
        weights[same[0].config.model.name] = facts["space"].weights
        data[f"{same[0].config.task.name} {same[0].config.protocol.name}"] = to_fetch(same[0].config)
        fits = "" if found.bytes <= card.room() else f", does not fit: {advice(same[0], facts['lengths'], card)}"
        lines.append(
            f"{title}: {count} run(s) of {same[0].steps:,} steps, {memory}{fits}, "
            f"{count} × {each:g} = {count * each:g} GPU-hours"
        )
    fetched = _to_fetch(weights.values(), data.values())
    lines.append(
        f"together: {len(runs)} runs, about {rounded(hours):g} GPU-hours on {card.name}"
        + ("" if here else " (not the card of this machine)")
        + f" ({accuracy(weights)}); disk {_size(largest)} for the checkpoints "
        f"of a run, {_size(stays)} stay" + (f"; download {fetched}" if fetched else "")
    )
    return "\n".join(lines)


def sweep_hours(runs: Sequence[Resolved]) -> float:
    """Return the GPU-hours of several runs on the card that a plan is for."""
    card = planned_card(runs[0].config.plan)[0] if runs else None
    known: dict[str, float] = {}
    total = 0.0
    for run in runs:
        key = repr((run.config.model, run.config.task, run.config.method, run.config.profile, run.steps))
        if key not in known and card is not None:
            known[key] = gpu_hours(run, planned_lengths(run.config, run.task), card)
        total += known[key]
    return total


def _to_fetch(weights: Iterable[int], data: Iterable[Fetched]) -> str:
    """Return what is to fetch, with where its size is from and what has an unknown size; nothing if that is nothing."""
    total, parts = sum(weights), [one for one in data if one.bytes or one.unknown]
    known, unknown = sum(one.bytes for one in parts), dict.fromkeys(name for one in parts for name in one.unknown)
    texts = [f"{_size(total)} of weights (parameters by the bytes they are stored in)"] if total else []
    if known:
        sources = dict.fromkeys(one.source for one in parts if one.bytes)
        texts.append(f"{known / 2**20:.1f} MiB of data ({'; '.join(sources)})")
    if unknown:
        texts.append(f"size not known: {', '.join(unknown)}")
    return "; ".join(texts) + ("; less what is cached" if parts else "")


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _memory_lines(resolved: Resolved, facts: dict[str, Any], card: Card, here: bool) -> list[str]:
    found: Peak = facts["peak"]
    lengths: Lengths = facts["lengths"]
    known = {"characters": ", lengths guessed from characters", "limit": ", the length limit"}.get(lengths.known, "")
    lines = [f"  memory      {_taken(found)}{known}"]
    if facts["training"] and found.phase != TRAINING:
        lines.append(f"              {_taken(peak(facts['training']))}")
    where = "this machine's card" if here else "no card here, so for the one of the benchmarks"
    where = "as asked" if isinstance(resolved.config.plan, str) else where
    if found.bytes <= card.room():
        lines.append(f"  card        fits {card.name}, {card.memory / GIB:.0f} GiB ({where})")
    else:
        change = advice(resolved, lengths, card)
        lines.append(f"  card        does not fit {card.name}, {card.memory / GIB:.0f} GiB ({where}); try {change}")
    return lines


def _taken(found: Peak) -> str:
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in found.parts.items() if size >= 0.05 * GIB)
    return (
        f"{found.bytes / GIB:.1f} GiB a device in {found.phase} ({parts}), on "
        f"{found.batch.rows} × {found.batch.length} tokens"
    )
