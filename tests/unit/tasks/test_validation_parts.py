"""What chooses a setting never reports it: the two parts of the validation items are disjoint and the same for all."""

from __future__ import annotations

import os

import pytest

from dual_lora import tasks
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.runs.identity import identity
from dual_lora.tasks import splits

TASKS = {
    "e2e": ("protocol.selection_examples=6",),
    "commonsense": ("protocol.selection_examples=4", "protocol.report_examples=5"),
}


def items(*words: str) -> splits.Items:
    [config] = compose(["model=tiny_llama", "method=lora", "data.source=sample", "protocol=strict", *words])
    return splits.select(tasks.load(config), config)


def names(examples: list[tasks.base.Example]) -> set[str]:
    return {example.identifier for example in examples}


@pytest.mark.parametrize("task", TASKS)
def test_the_parts_are_disjoint_from_each_other_from_training_and_from_the_test(task: str) -> None:
    words = (f"task={task}", *TASKS[task])
    parts = {part: items(*words, f"protocol.validation_part={part}") for part in ("select", "report")}
    select, report = (names(parts[part].validation) for part in ("select", "report"))
    assert len(select) == len(parts["select"].validation) == int(TASKS[task][0].rpartition("=")[2])
    assert report
    assert not select & report
    for one in parts.values():
        assert names(one.train) == names(parts["select"].train), "both parts train on the same examples"
        assert not (select | report) & (names(one.train) | names(one.test))
    few = items(*words, "protocol.validation_part=report", "profile.validation_examples=2")
    assert len(few.validation) == 2
    assert names(few.validation) <= report
    again = items(*words, "protocol.validation_part=select", "method=dual_lora", "seed=107")
    assert names(again.validation) == select


def test_a_classifiers_parts_are_the_held_out_tenth_and_the_development_set() -> None:
    words = ("task=glue/rte", "model=tiny_roberta")
    found = items(*words)
    assert found.held_out
    assert found.test
    assert not names(found.held_out) & (names(found.test) | names(found.train))
    with pytest.raises(ConfigError, match="has its parts already"):
        items(*words, "protocol.validation_part=select")


@pytest.mark.parametrize("wanted", ["null", "100000"])
def test_parts_that_cannot_be_are_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="both parts need some"):
        items("task=e2e", "protocol.validation_part=report", f"protocol.selection_examples={wanted}")


def test_the_part_is_in_the_name_of_a_run_only_if_there_is_one() -> None:
    def named(*words: str) -> dict[str, dict[str, object]]:
        [config] = compose(["model=tiny_llama", "task=e2e", "method=lora", "protocol=strict", *words])
        return identity(config, dtype="float32", model_fingerprint={}, data_fingerprint={})

    assert "selection_examples" not in named()["protocol"]
    select, report = (named(f"protocol.validation_part={part}") for part in ("select", "report"))
    assert len({one["protocol"]["hash"] for one in (named(), select, report)}) == 3
    assert select["protocol"]["selection_examples"] == 1024


@pytest.mark.skipif("DUAL_LORA_DATA" not in os.environ, reason="needs the real development set")
def test_e2e_keeps_3648_development_pairs_that_never_chose() -> None:
    where = ("task=e2e", "data.source=local", f"data.dir={os.environ['DUAL_LORA_DATA']}")
    [config] = compose(["model=tiny_llama", "method=lora", "protocol=strict", *where])
    parts = {}
    for part, bound in (("select", "null"), ("report", "null"), ("all", "1024")):
        [config] = compose(
            ["model=tiny_llama", "method=lora", "protocol=strict", *where]
            + [f"protocol.validation_part={part}", f"profile.validation_examples={bound}"]
        )
        parts[part] = names(splits.select(tasks.load(config), config).validation)
    assert len(parts["select"]) == 1024
    assert len(parts["report"]) == 4672 - 1024
    assert parts["select"] == parts["all"], "those that chose the rates of the first studies"
