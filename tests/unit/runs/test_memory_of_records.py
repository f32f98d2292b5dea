"""Planned memory against every committed record of a GPU that has a peak: within 10 %.

Records made by older code are compared with what that code did:

- without `execution.graphs`: steps were no graphs, lengths were multiples of 8, W0 + dW was built twice, and causal
  models got a mask, for which attention repeats the keys and values of grouped heads, once a layer;
- of commit 815f3f3 (trials on E2E): logits were computed at every position, and the Trainer's label smoothing made one
  more float32 tensor of their size;
- without `execution.eval_batch`: the batch of the experiment that they are of.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
from pathlib import Path

from dual_lora import models, tasks
from dual_lora.config import RunConfig, evaluation_batches
from dual_lora.config.compose import compose
from dual_lora.config.schedule import plan_batches, plan_steps
from dual_lora.records.schema import Record
from dual_lora.report import records
from dual_lora.runs import memory
from dual_lora.runs.cards import CARDS
from dual_lora.runs.kept_tensors import Setup
from dual_lora.runs.phases import Peak, longest_batches, peak, peaks
from dual_lora.runs.phases import setup as planned_setup
from dual_lora.runs.resolve import Resolved, as_published
from dual_lora.tasks.lengths import Lengths, Longest, planned_lengths

RESULTS = Path(__file__).parents[3] / "results"
LONGEST = json.loads(Path(__file__).with_name("longest.json").read_text(encoding="utf-8"))
BOUND = 0.10
LOGITS_EVERYWHERE = ("815f3f3",)
# Commonsense, candidates as text: of batches in the order of the prompts the one that took most, with 230 tokens of a
# candidate. Rows, tokens and positions with logits are SmolLM2's, counted on the test set.
RANKED = (511, 46 + 230, 3289)


def measured() -> list[Record]:
    held, refused = records.read_all(RESULTS / "records")
    assert not refused
    return [record for record in held if record.cost.peak_memory_bytes and "NVIDIA" in record.execution["device"]]


def resolved(record: Record) -> Resolved:
    """Return what `resolve` would, of a record's settings, without its data."""
    identity, execution = record.identity, record.execution
    config = composed(*(record.name(part) for part in ("model", "task", "method", "protocol")))
    sizes = {name: identity["profile"][name] for name in ("validation_examples", "test_items")}
    eval_batch = execution.get("eval_batch")
    if eval_batch is None and record.name("model") != "smollm2":  # of experiments/known_answers*.yaml, glue_minilm.yaml
        eval_batch = (
            128 if record.name("model") == "minilm" else 64 if config.model.family in ("gpt2", "llama") else 256
        )
    launch = dataclasses.replace(config.launch, eval_batch=None)
    if eval_batch == evaluation_batches.candidates(
        launch, parameters=models.count_parameters(config.model, tasks.load(config).head)
    ):
        eval_batch = None  # nobody asked for it: validation in training has another then
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=identity["dtype"], dropout=identity["model"].get("dropout")),
        method=dataclasses.replace(config.method, settings=identity["method"]["settings"]),
        task=dataclasses.replace(
            config.task, target=identity["task"]["target"], scorings=tuple(identity["task"].get("scorings", ()))
        ),
        protocol=dataclasses.replace(
            config.protocol, validation_part=identity["protocol"].get("validation_part", "all")
        ),
        recipe=dataclasses.replace(
            config.recipe, global_batch=execution["global_batch"], epochs=identity["recipe"]["epochs"]
        ),
        profile=dataclasses.replace(config.profile, **sizes),
        launch=dataclasses.replace(
            config.launch,
            per_device_batch=execution["per_device_batch"],
            eval_batch=eval_batch,
            graphs="auto" if graphed(record) else "off",
        ),
    )  # fmt: skip
    files = identity["data"]["fingerprint"].get("files", {})
    examples = identity["profile"]["train_examples"] or max(
        [file.get("items", 0) for name, file in files.items() if "train" in name], default=0
    )
    steps = plan_steps(config, examples or 20_000)
    return Resolved(
        config, tasks.load(config), "cuda", identity["dtype"], plan_batches(config), None, examples or 20_000,
        *steps, 0, None, None, {},
    )  # fmt: skip


@functools.cache
def composed(model: str, task: str, method: str, protocol: str) -> RunConfig:
    words = [f"model={model}", f"task={task}", f"method={method}", f"protocol={protocol}", "init_from=none"]
    return as_published(compose(words)[0])


def lengths_of(record: Record, run: Resolved) -> Lengths:
    """Return what a plan knows next to the record's data: its longest texts are in `longest.json`.

    Runs of several epochs do not need the second longest and their number.
    """
    key = " ".join([record.name("model"), record.name("task"), shown(record), record.identity["task"]["target"]])
    return dataclasses.replace(planned_lengths(run.config, run.task), exact=Longest(*LONGEST[key]))


def shown(record: Record) -> str:
    """Return the profile that a record's texts are of: the study's for trials too, but for those of fewer texts."""
    profile, examples = record.name("profile"), record.identity["profile"]["train_examples"]
    if (record.name("task"), examples) == ("e2e", 16_000):
        return "study of 16000"
    if record.name("task") == "commonsense" and "validation_part" in record.identity["protocol"]:
        return "study in parts"  # more examples are held out, so others are drawn
    own = record.name("model") == "small_llama" or examples == 8000
    return "study" if profile == "trial" and not own else profile


def graphed(record: Record) -> bool:
    """Whether steps were graphs; a training that diverged says nothing of them."""
    return bool(record.execution.get("graphs")) or record.status != "finished"


def planned(record: Record) -> Peak:
    run, card = resolved(record), CARDS["h200"]
    lengths = lengths_of(record, run)
    found = peak(peaks(run, lengths, card))
    if graphed(record):
        return found
    d, setup = run.config.model.dimensions, dataclasses.replace(planned_setup(run, card), keeps_weights=False)
    assert lengths.exact is not None
    rows = run.batches.per_device
    everywhere = record.origin["commit"].startswith(LOGITS_EVERYWHERE)
    key_value = d.hidden_size // d.num_heads * d.num_key_value_heads
    phases = older_evaluations(run, setup, lengths)
    batches = [] if run.config.method.trains == "nothing" else longest_batches(run, lengths)
    for tokens, learned, first in batches:
        length = -(-tokens // 8) * 8
        positions = rows * (length if everywhere else round(learned)) if run.task.head.kind == "causal_lm" else 0
        batch = memory.Batch(rows, length, positions)
        older = 2 * setup.e * (d.hidden_size - key_value) * d.num_layers * batch.tokens
        if everywhere:
            older += 4 * d.vocab_size * positions
        phases.append(Peak("training", batch, {**memory.training(setup, batch, first=first), "older code": older}))
    return max(phases, key=lambda phase: phase.bytes)


def older_evaluations(run: Resolved, setup: Setup, lengths: Lengths) -> list[Peak]:
    """Return the peaks of evaluations that made batches of 4,096 tokens, with logits in float32, or 512 sequences."""
    config, exact = run.config, lengths.exact
    assert exact is not None
    prompt = -(-max(exact.prompt, 1) // 8) * 8
    if run.task.head.kind == "classification":
        batch = memory.Batch(min(config.launch.eval_batch or 64, max(lengths.test, 1)), prompt)
        return [Peak("evaluation", batch, memory.validation(setup, batch))]
    found, logits = [], setup.model.dimensions.vocab_size * (setup.e + 2 * 4)
    if config.profile.validation_examples != 0:
        top = max(exact.validation, 1)
        batch = memory.Batch(max(1, 4096 // top), -(-top // 8) * 8)
        positions = round(1.1 * max(batch.tokens, 4096))
        parts = {**memory.validation(setup, batch), "logits or a block": positions * logits}
        found.append(Peak("validation", batch._replace(positions=positions), parts))
    if config.profile.test_items != 0:
        decoding = config.protocol.decoding
        rows = min(config.launch.eval_batch or 512 // decoding.beams, lengths.test)
        found.append(Peak("prompts", prompts := memory.Batch(rows, prompt), memory.validation(setup, prompts)))
        replies = memory.Batch(rows * decoding.beams, prompt + decoding.max_new_tokens)
        parts = {**memory.validation(setup, replies), "logits or a block": replies.rows * logits}
        found.append(Peak("generation", replies, parts))
        if "cloze" in run.task.scorings:
            batch = memory.Batch(*RANKED)
            found.append(Peak("ranking", batch, memory.ranking(setup, batch, 230)))
    return found


def alike(record: Record) -> str:
    """Return what records have in common whose plans say the same: all but the seed and the learning rate."""
    held = record.identity
    parts = {name: held[name] for name in ("model", "task", "protocol", "profile", "dtype")}
    method, execution = held["method"], record.execution
    batches = [execution.get(name) for name in ("per_device_batch", "global_batch", "eval_batch")]
    old = record.origin["commit"].startswith(LOGITS_EVERYWHERE)
    return repr((parts, method["name"], method["settings"], batches, graphed(record), old))


def test_every_committed_record_is_planned_within_the_bound(capsys):
    errors, known, beyond = {}, {}, {}
    for record in measured():
        like = alike(record)
        if like not in known:
            known[like] = planned(record).bytes
        error = errors[record.run_id] = known[like] / max(record.cost.peak_memory_bytes) - 1
        if abs(error) > BOUND:
            beyond[record.run_id] = f"{error:+.1%}"
    ordered = sorted(map(abs, errors.values()))
    with capsys.disabled():
        share = ordered[int(0.9 * len(ordered))]
        print(f"\n{len(ordered)} records: median {statistics.median(ordered):.1%}, 90 % within {share:.1%}", end=" ")
        print(f"and all within {ordered[-1]:.1%}")
    assert len(ordered) > 900
    assert beyond == {}
