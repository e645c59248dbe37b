"""Signals only ask for a stop, however often they come; a second Ctrl-C interrupts."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from engine.errors import Stopped, waiting_for
from engine.loop.stop_requests import StopRequests


class Processes:
    """One process, or two, of which this is rank 0 and the other one has got a signal."""

    is_main = True

    def __init__(self, world_size=1):
        self.world_size = world_size

    def any(self, flag):
        return flag or self.world_size > 1

    def gather_lines(self, lines):
        return [*lines, {"by_file": False, "signal": "SIGTERM"}]

    def broadcast_object(self, value):
        return value


@pytest.fixture(autouse=True)
def foreground():
    """As in the foreground: under nohup SIGHUP is ignored, here and in what is started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def requests_of(*, world_size=1, by_file=False):
    return StopRequests(Processes(world_size), SimpleNamespace(stop_requested=lambda: by_file))


def send(number, *, until):
    """Send a signal to this process and wait until it is seen: two that are pending at once are one to the kernel."""
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 10
    while not until() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_schedulers_may_send_their_signals_any_number_of_times(number):
    before = signal.getsignal(number)
    with requests_of() as requests:
        send(number, until=lambda: requests.signalled_at)
        first = requests.signalled_at
        for _ in range(2):
            send(number, until=lambda: time.time() > first + 0.02)
    assert requests.signalled_at == first
    assert requests.agreed(1)
    assert requests.reason == signal.Signals(number).name
    assert signal.getsignal(number) is before


@pytest.fixture
def interruptible():
    """As in the foreground: a shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_interrupts():
    requests = requests_of()

    def interrupt_twice():
        with requests:
            send(signal.SIGINT, until=lambda: requests.signalled_at)
            send(signal.SIGINT, until=lambda: False)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert requests.signalled_at


def test_nothing_stops_that_nobody_asked_to():
    assert not requests_of().agreed(1)


@pytest.mark.parametrize(("by_file", "reason"), [(False, "SIGTERM"), (True, "the STOP file")])
def test_a_signal_that_only_another_process_got_is_not_called_the_stop_file(by_file, reason):
    """Whoever started the run takes the STOP file for the user's wish to end it, and would not go on."""
    requests = requests_of(world_size=2, by_file=by_file)
    assert requests.agreed(3)
    assert requests.reason == reason


def test_several_processes_look_again_only_after_the_step_that_they_agreed_on():
    requests = requests_of(world_size=2)
    requests._engine.any = lambda flag: flag
    assert not requests.agreed(1)
    requests._signal = "SIGTERM"
    assert not requests.agreed(requests._next_check - 1)
    assert requests.agreed(requests._next_check)


def wait_in_vain(*, signalled):
    with waiting_for("one"), waiting_for("another"):
        if signalled is not None:
            os.kill(os.getpid(), signalled)
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_wait_for_data_that_does_not_come(number, monkeypatch):
    monkeypatch.setattr("engine.loop.stop_requests.LEAST_WAIT_S", 0.05)
    for before in (True, False):
        with requests_of() as requests:
            if before:
                send(number, until=lambda: requests.signalled_at)
            start = time.monotonic()
            said = f"stopped by {signal.Signals(number).name}, while waiting for another, while waiting for one"
            with pytest.raises(Stopped, match=said):
                wait_in_vain(signalled=None if before else number)
            assert time.monotonic() - start < 2


def test_data_that_comes_in_time_is_taken(monkeypatch):
    monkeypatch.setattr("engine.loop.stop_requests.LEAST_WAIT_S", 0.1)
    with requests_of() as requests:
        with waiting_for("data"):
            send(signal.SIGTERM, until=lambda: requests.signalled_at)
        time.sleep(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with requests_of() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            send(signal.SIGTERM, until=lambda: requests.signalled_at)
            assert requests.agreed(1)
            assert requests.reason == "SIGTERM"
    finally:
        signal.signal(signal.SIGHUP, before)
