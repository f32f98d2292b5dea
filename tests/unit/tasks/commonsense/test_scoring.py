"""Scores: accuracy per task and its plain mean, what went wrong, and whether guessing would do as well."""

import random

import pytest

from dual_lora.config import DataConfig, ProtocolConfig, TaskConfig
from dual_lora.tasks.commonsense import SUBSETS, Commonsense
from dual_lora.tasks.commonsense.scoring import chance_level, is_at_chance

STRICT = ProtocolConfig(name="strict", task="commonsense", prompt="alpaca")


def build(target="label"):
    task = TaskConfig(
        name="commonsense", module="commonsense", label="", subsets=SUBSETS, headline="accuracy", target=target
    )
    return Commonsense(task, STRICT, DataConfig(source="sample"))


def test_right_replies_score_one_everywhere():
    for target in ("label", "text"):
        task = build(target)
        examples = task.examples("test")
        replies = [task.render(example, training=True).answer for example in examples]
        scores = task.score([task.read(*pair) for pair in zip(replies, examples, strict=True)], examples, "generate")
        assert [score.subset for score in scores] == [*SUBSETS, "average"]
        for score in scores:
            assert score.metrics == {"accuracy": 1.0}
            assert (score.unreadable, score.counts["not_exact_sentence"], score.at_chance) == (0, 0, False)


def test_unreadable_is_wrong_and_every_oddity_is_counted():
    task = build()
    examples = [example for example in task.examples("test") if example.subset == "social_i_qa"][:4]
    right = [f"the correct answer is {example.references[0]}" for example in examples]
    replies = [right[0], right[1] + ", I think", "the correct answer is answer5", "no idea"]
    readings = [task.read(reply, example) for reply, example in zip(replies, examples, strict=True)]
    score = task.score(readings, examples, "generate")[0]
    assert score.metrics["accuracy"] == 0.5
    assert score.unreadable == 1
    assert score.counts == {"correct": 2, "out_of_range": 1, "not_exact_sentence": 3}


def test_the_average_counts_every_task_once():
    task = build()
    examples = task.examples("test")
    examples = [example for example in examples if example.subset == "boolq"] + [
        example for example in examples if example.subset == "piqa"
    ][:5]
    readings = [example.references[0] if example.subset == "piqa" else None for example in examples]
    assert [score.metrics["accuracy"] for score in task.score(readings, examples, "generate")] == [0.0, 1.0, 0.5]


def test_cloze_reports_the_raw_and_the_length_normalised_choice():
    task = build()
    example = next(example for example in task.examples("test") if example.subset == "piqa")
    _, candidates = task.ranking(example, "cloze")
    lengths = [len(text) for text in candidates]
    shorter = lengths.index(min(lengths))
    # Equal log-probability per character but for a little: the shorter text wins raw, the longer one normalised.
    log_probabilities = [-1.0 * length for length in lengths]
    log_probabilities[1 - shorter] += 0.01 * lengths[1 - shorter]
    answer = task.choose(example, "cloze", log_probabilities)
    assert answer == f"solution{shorter + 1}"
    assert answer.normalised == f"solution{2 - shorter}"
    score = task.score([answer], [example], "cloze")[0]
    assert sorted(score.metrics.values()) == [0.0, 1.0]
    assert set(score.metrics) == {"accuracy", "accuracy_normalised"}


def test_likelihood_ranks_the_published_sentences():
    task = build()
    example = next(example for example in task.examples("test") if example.subset == "boolq")
    prompt, candidates = task.ranking(example, "likelihood")
    assert prompt == task.render(example, training=False).prompt
    assert candidates == ("the correct answer is true", "the correct answer is false")
    assert task.choose(example, "likelihood", [-2.0, -1.0]) == "false"


def test_chance_is_the_better_of_guessing_and_the_most_frequent_answer():
    examples = [example for example in build().examples("test") if example.subset == "boolq"]
    true = [example for example in examples if example.references == ("true",)]
    assert chance_level(examples) == 0.5
    assert chance_level(true + examples[:1]) == pytest.approx(max(len(true) / (len(true) + 1), 0.5), abs=0.1)
    assert chance_level([e for e in build().examples("test") if e.subset == "ARC-Easy"]) == 0.4  # answer1: 8 of 20


def test_guessing_is_flagged_and_a_real_gain_is_not():
    rng = random.Random(0)
    guessed = [sum(rng.random() < 0.25 for _ in range(1000)) for _ in range(200)]
    assert sum(not is_at_chance(correct, 1000, 0.25) for correct in guessed) <= 6  # 1 % expected
    assert not is_at_chance(300, 1000, 0.25)
    assert is_at_chance(0, 1000, 0.25)


def test_an_average_of_guesses_is_at_chance():
    task = build()
    examples = task.examples("test")
    constant = [next(iter(task.ranking(example, "likelihood")[1])).split()[-1] for example in examples]
    average = task.score(constant, examples, "likelihood")[-1]
    assert average.at_chance
    right = [example.references[0] for example in examples]
    assert not task.score(right, examples, "likelihood")[-1].at_chance


def test_generation_may_stop_once_the_reading_is_settled():
    task = build()
    example = next(example for example in task.examples("test") if example.subset == "ARC-Easy")
    assert not task.complete("the correct answer is", example)
    assert task.complete("the correct answer is answer2", example)
