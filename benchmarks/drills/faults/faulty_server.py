"""An HTTP server that hangs after a while, or is not what it says."""

from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal

from tests.unit.data.bad_server import BadServer


class FaultyServer(BadServer):
    """Serves ``folder``, well unless told otherwise.

    Args:
        folder: what to serve.
        hangs_after: so many requests are answered, later ones are accepted and never answered.
        lies: of tars, it announces another size (`size`), sends more than they hold without end (`endless`), or closes
            after half of what it announced (`half`), each time from the start.
        seed: of which requests go wrong, where the shares that do are set.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hangs_after: int | None = None,
        lies: Literal["size", "endless", "half"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(folder, seed=seed)
        self.sent_bytes = 0
        self._hangs_after, self._lies = hangs_after, lies

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        if self._hangs_after is not None and len(self.requests) >= self._hangs_after:
            self.hanging = 1.0
        if self._lies is None or not request.path.endswith(".tar"):
            return super().answer(request)
        self.requests.append((request.path, dict(request.headers)))
        content = (self.folder / request.path.strip("/")).read_bytes()
        claimed = len(content) + (1000 if self._lies == "size" else 0)
        headers: Mapping[str, str] = {} if self._lies == "endless" else {"Content-Length": str(claimed)}
        self._head(request, 200, headers)
        self._write(request, content[: len(content) // 2] if self._lies == "half" else content)
        while self._lies == "endless" and not self.stopped.is_set():  # until the client closes the connection
            self._write(request, bytes(2**16))
        return None

    def _write(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        request.wfile.write(body)
        self.sent_bytes += len(body)
