"""Which batches of a run may take most memory, against the order in which the training's own sampler gives them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dual_lora import models, tasks
from dual_lora.config.compose import compose
from dual_lora.runs import memory, phases
from dual_lora.runs.cards import CARDS
from dual_lora.runs.resolve import Resolved, resolve
from dual_lora.tasks import splits
from dual_lora.tasks.encoding import encode_all
from dual_lora.tasks.lengths import Lengths, Longest, longest, planned_lengths
from dual_lora.training.sampling import StepSampler


def llama(*words: str) -> Resolved:
    [config] = compose(["model=llama2", "task=commonsense", "protocol=strict", "profile.test_items=0", *words])
    return resolve(config, planned=True)


@pytest.mark.parametrize(("size", "seed"), [(5120, 0), (5120, 1), (5000, 2), (5001, 3)])
def test_of_one_epoch_the_first_batch_has_the_longest_text(size, seed):
    """As the training's own sampler orders them, and the last one if it is filled up."""
    lengths = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    order = [lengths[place] for place in StepSampler(size, 16, seed, lengths)]
    first, second = sorted(lengths, reverse=True)[:2]
    assert max(order[:16]) == first
    assert max(order[16:-16]) <= second
    assert order[-16:].count(first) == (size % 16 > 0)
    own = sum(one < 200 for one in order[-16:])  # the rest are as long as those of the first batch

    full = dataclasses.replace(llama("method=full", "recipe.epochs=1"), train_examples=size)
    texts = planned_lengths(full.config, full.task)
    known = dataclasses.replace(texts, exact=Longest(256, 128, size, 20.0, 0, 0))
    found = phases.longest_batches(full, known)
    assert found[:2] == [(256, 20.0, True), (128, 20.0, False)]
    filled = [(256, pytest.approx((own * texts.learned[0] + (16 - own) * 20.0) / 16), False)]
    assert found[2:] == (filled if size % 16 else [])


def test_moments_are_not_counted_where_the_longest_text_comes_only_at_the_first_step():
    def known(run: Resolved) -> Lengths:
        rows = 100 * run.batches.global_batch
        return dataclasses.replace(planned_lengths(run.config, run.task), exact=Longest(1024, 512, rows, 20.0, 0, 0))

    for word in ("recipe.epochs=2", "recipe.length_grouped=false", "launch=deepspeed"):
        several = llama("method=full", "recipe.epochs=1", word)
        assert phases.longest_batches(several, known(several)) == [(1024, 20.0, False)]
    once = llama("method=full", "recipe.epochs=1")
    run = phases.setup(once, CARDS["h200"])
    whole, first, later = (
        memory.training(run, memory.Batch(16, length, 320), graphs=True, first=first)
        for length, first in ((1024, False), (1024, True), (512, False))
    )
    assert sum(whole.values()) - sum(first.values()) == (8 + 4) * 6_738_415_616
    assert phases.peak(phases.peaks(once, known(once), CARDS["h200"])).bytes == max(
        sum(first.values()), sum(later.values())
    )


@pytest.mark.parametrize("limit", [512, 140])
def test_the_longest_texts_are_those_that_training_has(limit):
    words = ["model=tiny_llama", "task=e2e", "method=full", "protocol=strict", "data.source=sample"]
    [config] = compose([*words, f"recipe.max_length_tokens={limit}"])
    task = tasks.load(config)
    tokenizer = models.load(config.model, task.head, dtype="float32", seed=0).tokenizer
    texts = [task.render(example, training=True) for example in splits.select(task, config).train]
    rows, counts = encode_all(texts, tokenizer, config.protocol, limit)
    assert (counts["left_out"] > 0) == (limit == 140)
    found = longest(config, task, tokenizer.backend_tokenizer, 16)
    assert [found.train, found.second] == sorted([len(row["input_ids"]) for row in rows], reverse=True)[:2]
    assert found.rows == len(rows)


@pytest.mark.parametrize(
    ("words", "validation", "test"),
    [
        ("task=commonsense", 512, 22_419),
        ("task=commonsense protocol.validation_part=select profile=trial", 512, 0),
        ("task=commonsense protocol.validation_part=report profile.test_items=1000", 4096, 8000),
        ("task=commonsense task.subsets=[boolq,piqa] profile.test_items=10 profile.validation_examples=9", 9, 20),
        ("task=e2e", 4672, 630),
        ("task=e2e protocol.validation_part=select", 1024, 630),
        ("task=e2e protocol.validation_part=report", 3648, 630),
    ],
)
def test_a_plan_counts_the_items_of_the_part_that_a_run_has_and_of_each_subset(words, validation, test):
    [config] = compose(["model=smollm2", "method=lora", "protocol=strict", *words.split()])
    run = resolve(config, planned=True)
    found = planned_lengths(config, run.task)
    assert (found.validation, found.test) == (validation, test)
