"""Signals only ask for a stop, however often they come; a second Ctrl-C interrupts."""

import os
import signal
import time

import pytest

from engine.training import _stop_signals


def send(number, *, until):
    """Send a signal to this process and wait until it is seen: two that are pending at once are one to the kernel."""
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 10
    while not until() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_schedulers_may_send_their_signals_any_number_of_times(number):
    noted = []
    before = signal.getsignal(number)
    with _stop_signals(lambda number, _frame: noted.append(number)):
        for count in (1, 2, 3):
            send(number, until=lambda count=count: len(noted) == count)
    assert noted == [number] * 3
    assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts():
    noted = []

    def interrupt_twice():
        with _stop_signals(lambda number, _frame: noted.append(number)):
            send(signal.SIGINT, until=lambda: noted)
            send(signal.SIGINT, until=lambda: False)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert noted == [signal.SIGINT]
