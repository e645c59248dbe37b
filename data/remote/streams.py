"""Bytes of remote files, from any offset on: HTTP(S) with the standard library, object stores through fsspec.

HTTP does without fsspec: its client runs an event loop in a thread of its own, which needs aiohttp, and which loader
workers inherit half of when they are forked. A blocking socket with a time limit has neither problem, and a download
that broke off is resumed where it stopped. Object stores are read in ranges, each a request of its own.

What may work when it is tried again raises `UnavailableError`, what cannot raises `UserError`.
"""

import contextlib
import http.client
import math
import netrc
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec

from data.remote.connections import CutConnections, CutHTTPHandler, CutHTTPSHandler, in_time
from data.remote.locations import check_location, is_remote
from engine.errors import UserError, is_refusal, plain_text

EXTRAS = {"s3": "s3", "gs": "gs"}
HTTP_CHUNK_BYTES = 256 * 1024
RANGE_BYTES = 16 * 2**20
LONGEST_SHOWN, LONGEST_NUMBER = 200, 20
"""Characters of what a server says that are shown, and that a size may have."""
BUSY = (408, 425, 429)  # of the 4xx, those that say "later"
RANGE_BEYOND_END = 416


class UnavailableError(OSError):
    """A file that could not be read this time, and may be next time."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The bytes of a file from ``start`` to its end."""

    start: int
    """Offset of the first byte that comes; 0 where the server ignored what was asked for."""
    size_bytes: int | None
    """Size of the whole file, if the server says it."""
    chunks: Iterator[bytes]
    """The bytes; iterating raises like `open_stream`."""


@contextlib.contextmanager
def open_stream(
    location: str, *, start: int = 0, timeout_s: float = 60.0, deadline_s: float = math.inf
) -> Iterator[Stream]:
    """Open a file at an offset; a server that is silent for ``timeout_s`` is `UnavailableError`.

    So is one that goes on past ``deadline_s``, a time of `time.monotonic`, whatever it sends until then.

    Raises:
        UnavailableError: no answer, a lost connection, an answer that says "later".
        UserError: there is no such file, or no permission to read it.
    """
    if not is_remote(location):
        with _open_local(location, start=start) as stream:
            yield stream
    elif check_location(location).startswith("http"):
        with _open_http(location, start=start, timeout_s=timeout_s, deadline_s=deadline_s) as stream:
            yield stream
    else:
        yield _open_object(location, start=start, timeout_s=timeout_s, deadline_s=deadline_s)


@contextlib.contextmanager
def _open_local(path: str, *, start: int) -> Iterator[Stream]:
    with contextlib.ExitStack() as stack:
        with _local_errors(path):
            file = stack.enter_context(Path(path).open("rb", buffering=0))
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(start)
        yield Stream(start=start, size_bytes=size_bytes, chunks=_local_chunks(file, path))


def _local_chunks(file: IO[bytes], path: str) -> Iterator[bytes]:
    while True:
        with _local_errors(path):
            chunk = file.read(RANGE_BYTES)
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _local_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}") from error


@contextlib.contextmanager
def _open_http(url: str, *, start: int, timeout_s: float, deadline_s: float) -> Iterator[Stream]:
    with CutConnections(deadline_s) as connections:
        with _http_errors(url, connections):
            response = _opener(connections).open(_request(url, start=start), timeout=timeout_s)
        with response:
            length = response.headers.get("Content-Length") or ""
            first_byte = start if response.status == http.client.PARTIAL_CONTENT else 0
            size_bytes = first_byte + int(length) if length.isdecimal() and len(length) < LONGEST_NUMBER else None
            yield Stream(start=first_byte, size_bytes=size_bytes, chunks=_http_chunks(response, url, connections))


def _http_chunks(response: Any, url: str, connections: CutConnections) -> Iterator[bytes]:
    while True:
        with _http_errors(url, connections):
            chunk = response.read1(HTTP_CHUNK_BYTES)  # returns what has come, so that a slow drip is noticed
        if not chunk:
            return
        yield chunk


def _opener(connections: CutConnections) -> urllib.request.OpenerDirector:
    """Make an opener that knows HTTP alone: no redirect leads to a file or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        CutHTTPHandler(connections),
        CutHTTPSHandler(connections),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirect(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith(("http://", "https://")):
            raise UserError(f"{req.full_url} leads to {_server_text(newurl)}, which is neither http:// nor https://")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(url: str, *, start: int) -> urllib.request.Request:
    request = urllib.request.Request(urllib.parse.quote(url, safe="/%:=&?~#+!$,;'@()*[]"))
    request.add_header("User-Agent", "green-pretrain")
    request.add_header("Accept-Encoding", "identity")
    if start:
        request.add_header("Range", f"bytes={start}-")
    login = _login(urllib.parse.urlsplit(url).hostname or "")
    if login is not None:
        request.add_unredirected_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    return request


def _login(host: str) -> str | None:
    """Look up ``user:password`` for a host in ~/.netrc, which keeps secrets out of recipes."""
    try:
        login = netrc.netrc().hosts.get(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return None if login is None else f"{login[0]}:{login[2]}"


def _server_text(text: object) -> str:
    """Write what a server said, so that it neither steers a terminal nor fills it."""
    plain = plain_text(str(text))
    return plain if len(plain) <= LONGEST_SHOWN else f"{plain[:LONGEST_SHOWN]}…"


@contextlib.contextmanager
def _http_errors(url: str, connections: CutConnections) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if connections.are_cut and not isinstance(error, UserError):
            raise UnavailableError(f"{url} is slow or silent, and was not there in time") from error
        with _known_http_errors(url):
            raise
    if connections.are_cut:  # which looks like the end of a body
        raise UnavailableError(f"{url} is slow or silent, and was not there in time")


@contextlib.contextmanager
def _known_http_errors(url: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == RANGE_BEYOND_END:
            raise UnavailableError(f"{url} has become shorter") from error
        if error.code >= 500 or error.code in BUSY:
            raise UnavailableError(f"{url} answered {error.code} {_server_text(error.reason)}") from error
        raise UserError(f"{url} cannot be read: {error.code} {_server_text(error.reason)}") from error
    except (http.client.InvalidURL, UnicodeError) as error:  # a host name that IDNA cannot encode
        raise UserError(f"{url} is no URL: {_server_text(error)}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(f"{url} cannot be trusted: {reason}") from error
        raise UnavailableError(f"{url}: {type(reason).__name__} {_server_text(reason)}".rstrip()) from error


def _open_object(url: str, *, start: int, timeout_s: float, deadline_s: float) -> Stream:
    scheme = url.partition(":")[0]
    with _object_errors(url):
        store = _object_store(scheme, timeout_s=timeout_s)
        size_bytes = int(in_time(lambda: store.info(url), deadline_s=deadline_s)["size"])
    chunks = _ranges(store, url, start=start, size_bytes=size_bytes, deadline_s=deadline_s)
    return Stream(start=start, size_bytes=size_bytes, chunks=chunks)


def _ranges(store: Any, url: str, *, start: int, size_bytes: int, deadline_s: float) -> Iterator[bytes]:
    while start < size_bytes:
        with _object_errors(url):
            read = partial(store.cat_file, url, start=start, end=min(start + RANGE_BYTES, size_bytes))
            content = in_time(read, deadline_s=deadline_s)
        if not content:
            return
        start += len(content)
        yield content


def _object_store(scheme: str, *, timeout_s: float) -> Any:
    """Open the fsspec file system of a scheme, without retries of its own: the time limit is kept in one place."""
    options: dict[str, Any] = {}
    if scheme == "s3":
        limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"max_attempts": 1}}
        options = {"config_kwargs": limits, "use_listings_cache": False}
    if scheme == "gs":
        options = {"requests_timeout": timeout_s}
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gRPC's threads do not survive a fork
    try:
        store: Any = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs a package that is not installed; run `pip install -e '.[{EXTRAS[scheme]}]'`"
        ) from error
    store.retries = 1
    return store


@contextlib.contextmanager
def _object_errors(url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except TimeoutError as error:
        raise UnavailableError(f"{url} is slow or silent, and was not there in time") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{url} cannot be read: {type(error).__name__} {_server_text(error)}") from error
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise UserError(f"{url} cannot be read: {_server_text(error)}") from error
        if not is_refusal(error):
            raise
        raise UnavailableError(f"{url}: {type(error).__name__} {_server_text(error)}") from error
