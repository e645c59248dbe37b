"""Signals only ask for a stop, however often they come; a second Ctrl-C interrupts."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from engine.loop.training import Training
from engine.run.stop_signals import stop_signals


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
    with stop_signals(lambda number, _frame: noted.append(number)):
        for count in (1, 2, 3):
            send(number, until=lambda count=count: len(noted) == count)
    assert noted == [number] * 3
    assert signal.getsignal(number) is before


@pytest.fixture
def interruptible():
    """As in the foreground: a shell's background jobs are started deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_interrupts():
    noted = []

    def interrupt_twice():
        with stop_signals(lambda number, _frame: noted.append(number)):
            send(signal.SIGINT, until=lambda: noted)
            send(signal.SIGINT, until=lambda: False)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert noted == [signal.SIGINT]


class Processes:
    """Two processes, of which this is rank 0; the other one has got a signal."""

    world_size, is_main = 2, True

    def any(self, flag):
        return True

    def gather_lines(self, lines):
        return [*lines, {"by_file": False, "signal": "SIGTERM"}]

    def broadcast_object(self, value):
        return value


@pytest.mark.parametrize(("by_file", "reason"), [(False, "SIGTERM"), (True, "the STOP file")])
def test_a_signal_that_only_another_process_got_is_not_called_the_stop_file(by_file, reason):
    """Whoever started the run takes the STOP file for the user's wish to end it, and would not go on."""
    training = object.__new__(Training)
    training.engine, training.step, training.stopped = Processes(), 3, False
    training.folder = SimpleNamespace(stop_requested=lambda: by_file)
    training._stop_signal = None
    training._started, training._first_step, training._next_stop_check = time.monotonic(), 0, 0
    training._stop_if_asked()
    assert training.stopped
    assert training._stop_reason == reason
