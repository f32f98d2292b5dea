"""Every committed record is named by the hash of what it says it is."""

from __future__ import annotations

import json
from typing import Any

from dual_lora.records import digest
from tests import ROOT

WORDS = ("label",)  # for people
OF_NO_USE_TO_A_RUN_THAT_TRAINS_NOTHING = ("recipe", "seed")


def name_of(identity: dict[str, Any]) -> str:
    """Hash all settings but labels, and the protocol without its own hash."""
    held = {key: value for key, value in identity.items() if key != "run_id"}
    held["protocol"] = {key: value for key, value in held["protocol"].items() if key != "hash"}
    if held["method"]["trains"] == "nothing":
        held = {key: value for key, value in held.items() if key not in OF_NO_USE_TO_A_RUN_THAT_TRAINS_NOTHING}
    plain = {
        key: {name: item for name, item in value.items() if name not in WORDS} if isinstance(value, dict) else value
        for key, value in held.items()
    }
    return digest(plain, 16)


def test_records_are_named_by_what_they_hold() -> None:
    paths = sorted((ROOT / "results" / "records").glob("*.json"))
    records = {path.stem: json.loads(path.read_text(encoding="utf-8"))["identity"] for path in paths}
    assert records
    wrong = [name for name, identity in records.items() if not name == identity["run_id"] == name_of(identity)]
    assert not wrong


def test_another_setting_is_another_name() -> None:
    path = min((ROOT / "results" / "records").glob("*.json"))
    identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
    changed = json.loads(json.dumps(identity))
    changed["protocol"]["name"] = "another"
    assert name_of(changed) != identity["run_id"]
