"""A study's validation examples are others than those that chose its settings."""

from __future__ import annotations

import pytest

from dual_lora import tasks
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.runs.identity import identity
from dual_lora.tasks import splits

E2E = ("task=e2e", "task.metrics=[BLEU]", "protocol=strict", "data.source=sample", "model=tiny_llama", "method=lora")


def validation(*words: str) -> set[str]:
    (config,) = compose([*E2E, *words])
    return {example.identifier for example in splits.select(tasks.load(config), config).validation}


def test_a_study_does_not_see_what_its_trials_drew() -> None:
    whole = validation()
    drawn = validation("profile=trial", "profile.validation_examples=5")
    left = validation("profile=study", "profile.validation_of_trials=5")
    assert len(drawn) == 5
    assert left == whole - drawn
    few = validation("profile=study", "profile.validation_of_trials=5", "profile.validation_examples=3")
    assert len(few) == 3
    assert few < left


@pytest.mark.parametrize(("number", "legal"), [(0, "at least 1"), (-1, "at least 1"), (100_000, r"legal are 1 to \d+")])
def test_a_number_that_leaves_none_is_refused_with_the_legal_ones(number: int, legal: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)validation_of_trials=.*{legal}"):
        validation(f"profile.validation_of_trials={number}")


def test_a_classifier_has_no_such_examples() -> None:
    words = [
        "task=glue/rte",
        "model=tiny_roberta",
        "method=lora",
        "data.source=sample",
        "profile.validation_of_trials=5",
    ]
    (config,) = compose(words)
    with pytest.raises(ConfigError, match=r"protocol.validation_fraction"):
        splits.select(tasks.load(config), config)


def test_a_run_that_does_not_state_it_keeps_its_name() -> None:
    names = []
    for words in ([], ["profile.validation_of_trials=5"]):
        (config,) = compose([*E2E, *words])
        names.append(identity(config, model_fingerprint={}, data_fingerprint={}, dtype="float32", init_from="none"))
    assert "validation_of_trials" not in names[0]["profile"]
    assert names[0]["run_id"] != names[1]["run_id"]
