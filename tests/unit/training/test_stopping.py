"""Signals that ask a run to stop, as a training takes them."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

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


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR2, "SIGUSR2")])
def test_a_process_that_was_told_by_another_takes_its_own_signal_for_the_same(monkeypatch, number, name):
    """It may come when training is over: the end of the parent is seen within a second, by each process on its own."""
    monkeypatch.setattr(stopping.processes, "largest", lambda own: max(own, number))
    control = TrainerControl()
    with stopping.signals_interrupt():
        with stopping.Interruption() as training:
            training.on_step_end(SimpleNamespace(), TrainerState(global_step=3, max_steps=9), control)
        assert control.should_save
        assert control.should_training_stop
        signal.raise_signal(signal.SIGTERM)
    assert training.signal == stopping.asked() == name  # which decides whether the record says `timed_out`


def test_a_signal_waits_for_a_record():
    done = []

    def write():
        with stopping.signals_interrupt(), stopping.held():
            signal.raise_signal(signal.SIGTERM)
            done.append("written")

    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        write()
    assert done == ["written"]


def test_a_signal_that_repeats_another_is_dropped_while_a_record_is_written():
    with stopping.signals_interrupt():
        stopping.note(signal.SIGTERM)
        with stopping.held():
            signal.raise_signal(signal.SIGTERM)
