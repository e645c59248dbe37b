"""Signals only ask for a stop, however often they come; a second Ctrl-C interrupts."""

import os
import signal

import pytest

from engine.training import _stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_schedulers_may_send_their_signals_any_number_of_times(number):
    noted = []
    before = signal.getsignal(number)
    with _stop_signals(lambda number, _frame: noted.append(number)):
        for _ in range(3):
            os.kill(os.getpid(), number)
    assert noted == [number] * 3
    assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts():
    noted = []

    def interrupt_twice():
        with _stop_signals(lambda number, _frame: noted.append(number)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert noted == [signal.SIGINT]
