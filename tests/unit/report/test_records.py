"""Records as a table reads them: upgraded, selected by the words of a command line."""

from __future__ import annotations

import pytest

from dual_lora.records import schema
from dual_lora.report import selection
from tests.unit.report.report_builder import record


def test_a_newer_record_and_one_without_a_protocol_are_refused():
    with pytest.raises(schema.RecordError, match="schema=99"):
        schema.parse({**record("lora"), "schema": 99})
    with pytest.raises(schema.RecordError, match="status"):
        schema.parse({**record("lora"), "status": "fine"})
    missing = record("lora")
    del missing["identity"]["protocol"]
    with pytest.raises(schema.RecordError, match=r"identity\.protocol"):
        schema.parse(missing)


def test_an_old_record_is_upgraded_one_version_at_a_time(monkeypatch):
    old = {**record("lora"), "schema": 0}
    old["state"] = old.pop("status")
    with pytest.raises(schema.RecordError, match="no upgrade"):
        schema.parse(old)
    monkeypatch.setitem(schema.UPGRADES, 0, lambda values: {**values, "status": values["state"]})
    assert schema.parse(old).status == "finished"


def test_a_choice_that_is_a_list_selects_the_records_with_these_words():
    values = record("lora", 0)
    values["identity"]["task"]["scorings"] = ["generate", "cloze"]
    made = schema.parse(values)
    assert selection.belongs(made, {"task.scorings": "[generate,cloze]"})
    assert selection.belongs(made, {"task.scorings": "[generate, cloze]"})
    assert not selection.belongs(made, {"task.scorings": "[generate]"})
    assert not selection.belongs(made, {"task.scorings": "[cloze,generate]"})
