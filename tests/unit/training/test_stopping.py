"""Signals that ask a run to stop, as a training takes them."""

from __future__ import annotations

import signal

import pytest

from dual_lora.training import stopping


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_asked", [])


@pytest.mark.parametrize("where", ["note", "repeats"])
def test_two_signals_at_once_are_one(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The launcher and the end of the parent both send SIGTERM; Python may take one while it handles the other."""
    training, real, inside = stopping.Interruption(), getattr(stopping, where), []

    def and_another(number: int) -> object:
        found = real(number)
        if not inside:
            inside.append(number)
            training._note(signal.SIGTERM, None)
        return found

    monkeypatch.setattr(stopping, where, and_another)
    try:
        training._note(signal.SIGTERM, None)
    except KeyboardInterrupt as error:  # which would end pytest
        pytest.fail(str(error))
    assert training.signal == stopping.asked() == "SIGTERM"
    training._note(signal.SIGTERM, None)  # and a third says nothing new


def test_a_second_ctrl_c_stops_at_once() -> None:
    training = stopping.Interruption()
    training._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt, match="a second SIGINT"):
        training._note(signal.SIGINT, None)
