"""An HTTP server on loopback that serves a folder and misbehaves as it is told."""

import contextlib
import random
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class BadServer:
    """Serves ``folder``; the shares of requests that go wrong may be changed at any time."""

    def __init__(self, folder: Path, *, seed=0):
        self.folder = folder
        self.busy = self.dropped = self.truncated = self.hanging = 0.0
        self.drip_s = None
        self.redirect = None
        self.ranges = True
        self.requests = []
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(ConnectionError):
                    server.answer(self)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request):
        with self._lock:
            self.requests.append((request.path, dict(request.headers)))
            luck = self._random.random
            busy, hanging, dropped, truncated = (
                luck() < share for share in (self.busy, self.hanging, self.dropped, self.truncated)
            )
        path = self.folder / unquote(request.path).lstrip("/")
        if self.redirect is not None:
            return self._head(request, 302, {"Location": self.redirect, "Content-Length": "0"})
        if busy:
            return self._head(request, 503, {"Content-Length": "0"})
        if hanging:
            self.stopped.wait(30)
            return None
        if not path.is_file():
            return self._head(request, 404, {"Content-Length": "0"})
        if dropped:
            return None
        content, start, status = path.read_bytes(), 0, 200
        if self.ranges and "Range" in request.headers:
            start, status = int(request.headers["Range"].removeprefix("bytes=").rstrip("-")), 206
        if start and start >= len(content):
            return self._head(request, 416, {"Content-Length": "0"})
        self._head(request, status, {"Content-Length": str(len(content) - start)})
        self._send(request, content[start : start + (len(content) - start + 1) // 2] if truncated else content[start:])
        return None

    def _send(self, request, body):
        if self.drip_s is None:
            request.wfile.write(body)
            return
        for number in range(len(body)):
            request.wfile.write(body[number : number + 1])
            if self.stopped.wait(self.drip_s):
                return

    @staticmethod
    def _head(request, status, headers):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()


class RawServer:
    """Sends the same bytes to everybody, then drops of others without an end; gives its URL."""

    def __init__(self, head: bytes, drop: bytes, *, every_s=0.05):
        stopped = self._stopped = threading.Event()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(ConnectionError):
                    self.request.recv(65536)
                    self.request.sendall(head)
                    while drop and not stopped.wait(every_s):
                        self.request.sendall(drop)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_):
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
