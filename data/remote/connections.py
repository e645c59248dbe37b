"""HTTP connections that are cut at a deadline: a server that sends a byte now and then breaks no time limit of a read.

Headers, interim answers, the sizes of chunks and trailers are all read inside the standard library, which returns only
when they are whole.
"""

import http.client
import math
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self, TypeVar

T = TypeVar("T")

LONGEST_TIMER_S = 7 * 24 * 3600.0


def in_time(call: Callable[[], T], *, deadline_s: float) -> T:
    """Call what makes connections of its own; at the deadline, a time of `time.monotonic`, it is left to itself.

    Raises:
        TimeoutError: it had not ended by then.
    """
    if deadline_s == math.inf:
        return call()
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(timeout=max(0.0, deadline_s - time.monotonic()))


class CutConnections:
    """Within it connections may be made; at the deadline, a time of `time.monotonic`, all of them end."""

    def __init__(self, deadline_s: float) -> None:
        self._left_s = max(0.0, deadline_s - time.monotonic())
        self._cut, self._lock = threading.Event(), threading.Lock()
        self._twins: list[socket.socket] = []
        self._timer: threading.Timer | None = None

    @property
    def are_cut(self) -> bool:
        """Whether the deadline has come."""
        return self._cut.is_set()

    def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        """Connect as `socket.create_connection` does."""
        connected = socket.create_connection(*args, **kwargs)
        with self._lock:
            # Its own descriptor of the same connection: TLS takes the first one away from its socket.
            self._twins.append(connected.dup())
        if self.are_cut:
            self._end_all()
        return connected

    def __enter__(self) -> Self:
        """Let the time run."""
        if self._left_s < LONGEST_TIMER_S:
            self._timer = threading.Timer(self._left_s, self._end_all)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the connections, which those who use them close."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            for twin in self._twins:
                twin.close()
            self._twins.clear()

    def _end_all(self) -> None:
        self._cut.set()
        with self._lock:
            for twin in self._twins:
                with suppress(OSError):  # it has ended already
                    twin.shutdown(socket.SHUT_RDWR)


class CutHTTPHandler(urllib.request.HTTPHandler):
    """Opens http:// through connections that are cut."""

    def __init__(self, connections: CutConnections) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a request."""
        return self.do_open(_made_by(http.client.HTTPConnection, self._connections), req)


class CutHTTPSHandler(urllib.request.HTTPSHandler):
    """Opens https:// through connections that are cut."""

    def __init__(self, connections: CutConnections) -> None:
        super().__init__()
        self._connections = connections

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a request."""
        context: Any = getattr(self, "_context", None)
        return self.do_open(_made_by(http.client.HTTPSConnection, self._connections), req, context=context)


def _made_by(kind: type[http.client.HTTPConnection], connections: CutConnections) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
        connection: Any = kind(*args, **kwargs)
        connection._create_connection = connections.connect  # what the class itself calls, proxies included
        return connection

    return make
