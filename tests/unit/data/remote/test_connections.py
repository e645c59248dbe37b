"""A connection ends at its deadline, whoever reads from it, and lives on where there is none."""

import math
import socket
import time

import pytest

from data.remote.connections import CutConnections, in_time


@pytest.fixture
def silent_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_blocked_read_ends_at_the_deadline(silent_port):
    start = time.monotonic()
    with CutConnections(start + 0.1) as connections, connections.connect(("127.0.0.1", silent_port)) as connected:
        assert connected.recv(1) == b""
        assert connections.are_cut
    assert time.monotonic() - start < 2


def test_a_connection_made_after_the_deadline_is_cut_at_once(silent_port):
    with CutConnections(time.monotonic() - 1) as connections:
        time.sleep(0.05)
        with connections.connect(("127.0.0.1", silent_port)) as connected:
            assert connected.recv(1) == b""


def test_without_a_deadline_nothing_is_cut(silent_port):
    with CutConnections(math.inf) as connections, connections.connect(("127.0.0.1", silent_port)) as connected:
        connected.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connected.recv(1)
        assert not connections.are_cut


def test_a_call_ends_in_time_and_hands_on_what_it_raises():
    deadline_s = time.monotonic() + 0.1
    assert in_time(lambda: 3, deadline_s=deadline_s) == in_time(lambda: 3, deadline_s=math.inf) == 3
    with pytest.raises(FileNotFoundError):
        in_time(lambda: open("/none"), deadline_s=deadline_s)  # noqa: PTH123, SIM115
    with pytest.raises(TimeoutError):
        in_time(lambda: time.sleep(30), deadline_s=deadline_s)
    assert time.monotonic() < deadline_s + 1
