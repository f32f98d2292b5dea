"""What every task promises, on its sample (own tasks: on its data). A new task is tested as it is."""

from __future__ import annotations

import json

import pytest

from dual_lora import tasks
from dual_lora.config import RunConfig
from dual_lora.config.choices import options
from dual_lora.config.compose import compose
from dual_lora.tasks.base import ClassificationTask, Task

# Tasks whose data has no sample are tested in tests/unit/tasks, on small files of their own.
WITHOUT_SAMPLE = ("webnlg", "dart")
SPLITS = ("train", "validation", "test")
ENCODERS = ("glue/",)


@pytest.fixture(params=[name for name in options("task") if name not in WITHOUT_SAMPLE])
def config(request: pytest.FixtureRequest) -> RunConfig:
    model = "tiny_roberta" if request.param.startswith(ENCODERS) else "tiny_llama"
    words = [f"task={request.param}", f"model={model}", "method=lora", "data.source=sample"]
    [made] = compose([*words, *(["task.metrics=[BLEU]"] if request.param == "e2e" else [])])
    return made


def built(config: RunConfig) -> Task:
    """Return the task anew: nothing is kept from another test."""
    tasks._BUILT.clear()
    return tasks.load(config)


def test_it_is_the_task_that_is_named(config: RunConfig) -> None:
    task = built(config)
    assert task.name == config.task.name
    assert task.head.kind in ("causal_lm", "classification")
    assert isinstance(task, ClassificationTask) == (task.head.kind == "classification")
    assert task.scorings
    assert task.published_train_examples() > 0
    assert all(isinstance(note, str) for note in task.notes)


def test_its_examples_are_the_same_each_time_and_have_names_of_their_own(config: RunConfig) -> None:
    first, again = built(config), built(config)
    for split in SPLITS:
        examples = first.examples(split)
        assert examples, split
        assert examples == again.examples(split)
        assert len({example.identifier for example in examples}) == len(examples)
        assert all(example.references for example in examples)
    train, test = ({example.identifier for example in first.examples(split)} for split in ("train", "test"))
    assert not train & test


def test_its_fingerprint_is_json_and_the_same_each_time(config: RunConfig) -> None:
    assert json.dumps(built(config).fingerprint(), sort_keys=True) == json.dumps(
        built(config).fingerprint(), sort_keys=True
    )


def test_what_it_renders_has_a_prompt_and_an_answer_that_it_reads(config: RunConfig) -> None:
    task = built(config)
    for example in task.examples("test")[:20]:
        prompt = task.render(example, training=False)
        assert prompt.prompt.strip()
        assert prompt.answer.strip()
        assert task.read(prompt.answer, example) is not None


def test_right_answers_score_best_and_unreadable_ones_are_counted(config: RunConfig) -> None:
    task = built(config)
    examples = task.examples("test")
    right = [task.read(task.render(example, training=False).answer, example) for example in examples]
    for scoring in task.scorings:
        [*_, whole] = task.score(right, examples, scoring)
        assert config.task.headline in whole.metrics
        best = whole.metrics[config.task.headline]
        assert best is not None
        assert best > 0.99
        assert whole.unreadable == 0
        scored = {score.subset: score.items for score in task.score(right, examples, scoring)}
        assert scored[whole.subset] == len(examples)
        none = task.score([None] * len(examples), examples, scoring)[-1]
        assert none.unreadable + none.counts.get("empty", 0) == len(examples)  # a text is not read, but may be empty
        worst = none.metrics[config.task.headline]
        assert worst is None or worst < 0.01


def test_its_own_examples_are_kept_by_the_caller(config: RunConfig) -> None:
    """A caller may shuffle what it got."""
    task = built(config)
    examples = task.examples("test")
    names = [example.identifier for example in examples]
    examples.reverse()
    assert [example.identifier for example in task.examples("test")] == names
