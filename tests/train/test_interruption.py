"""Signals: the first is noted, the second acts as it would have, handlers come back, other threads are left alone."""

from __future__ import annotations

import signal
import threading

import pytest

from fishpaw.train.interruption import Interruption

NUMBERS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_is_noted_and_raised_on_request(number: signal.Signals) -> None:
    before = handlers()
    with Interruption() as interruption:
        interruption.act()
        signal.raise_signal(number)
        assert interruption.received == number
        assert handlers() == before                                      # the second one is not ours any more
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as raised:
            interruption.act()
    assert isinstance(raised.value, KeyboardInterrupt) or (isinstance(raised.value, SystemExit) and raised.value.code == 143)
    assert handlers() == before


def test_the_second_ctrl_c_acts_at_once() -> None:
    with Interruption(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_handlers_come_back_without_a_signal_and_after_an_error() -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), Interruption():
        assert handlers() != before
        raise ZeroDivisionError
    assert handlers() == before


def test_an_ignored_signal_stays_ignored() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.received is None
    finally:
        signal.signal(signal.SIGINT, former)


def test_another_thread_leaves_the_handlers_alone() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with Interruption():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
