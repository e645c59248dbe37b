"""Servers that misbehave: whatever they send, a download ends in time and is explained in one plain line."""

import socketserver
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

from benchmarks.drills.trials.case import Case

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "headers": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "interim_answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "sizes_of_chunks": (CHUNKED, b"0"),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\nX: ", b"a"),
    "a_body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", b"a"),
    "a_body_without_length": (b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
    "nothing": (b"", b""),
}
PAUSE_S = 0.1
GIVE_UP = ("--cache.give-up-s", "2", "--cache.timeout-s", "1.5")


class _Files(SimpleHTTPRequestHandler):
    """Serves a folder, but never what ends in ``suffix``."""

    suffix = ".tar"

    def do_GET(self) -> None:
        """Answer, or not."""
        if self.path.endswith(self.suffix):
            Event().wait()
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def serve_all_but_tars(folder: Path, *, suffix: str = ".tar") -> str:
    """Serve a folder for as long as this program runs, but never what ends in ``suffix``; return its URL."""
    handler = type("Files", (_Files,), {"suffix": suffix})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def serve_drops(head: bytes, drop: bytes) -> str:
    """Send everybody the same bytes, then drops of others without an end; return the URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            try:
                self.request.sendall(head)
                while not Event().wait(PAUSE_S):
                    self.request.sendall(drop)
            except ConnectionError:
                pass

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def verify(head: bytes, drop: bytes, *options: str) -> Callable[[Path], list[str]]:
    """Verify what a server has."""
    return lambda _: ["data/main.py", "verify", "--shards", serve_drops(head, drop), *options]


CASES = [
    *(
        Case(
            name=f"drips_{name}",
            make=verify(head, drop, *GIVE_UP),
            code=1,
            says=r"error: http://127.0.0.1:\d+/manifest.json.* gave up after \d+ attempts in [123] s",
            limit_s=40,
        )
        for name, (head, drop) in DRIPS.items()
    ),
    Case(
        name="steers_the_terminal",
        make=verify(b"HTTP/1.1 403 \x1b[2J\x1b]0;owned\x07no\r\nContent-Length: 0\r\n\r\n", b""),
        code=1,
        says=r"manifest.json cannot be read: 403 .*no",
        never_says=r"Traceback|[\x1b\x07]",
    ),
    Case(
        name="leads_to_a_file",
        make=verify(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", b""),
        code=1,
        says="manifest.json cannot be read: 302 .*file:///etc/passwd. is not allowed",
    ),
]
