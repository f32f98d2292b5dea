"""Every committed record is named by the hash of what it says it is."""

from __future__ import annotations

import copy
from typing import Any

from dual_lora.records import digest
from tests import committed

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
    identities = [values["identity"] for values in committed.values()]
    assert identities
    wrong = [identity["run_id"] for identity in identities if identity["run_id"] != name_of(identity)]
    assert not wrong
    own = {path.stem for path in committed.FOLDER.glob("*.json")}
    assert own <= {identity["run_id"] for identity in identities}, "a file of one record has the name of its run"
    assert len({identity["run_id"] for identity in identities}) == len(identities), "a run is in one file"


def test_another_setting_is_another_name() -> None:
    identity = committed.values()[0]["identity"]
    changed = copy.deepcopy(identity)
    changed["protocol"]["name"] = "another"
    assert name_of(changed) != identity["run_id"]
