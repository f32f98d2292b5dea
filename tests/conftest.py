"""What every test starts from."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def registration_as_a_user_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script imported by one test puts the registration with PEFT off; it must not do so for the next test."""
    monkeypatch.delenv("_DUAL_LORA_LAZY", raising=False)
