"""Downloads from a server that misbehaves: whole in the end, or an error that says why, in time."""

import hashlib
import io
import logging
import time

import pytest

from data.remote.config import CacheConfig
from data.remote.download import GaveUpError, download, download_bytes
from engine.errors import UserError
from tests.unit.data.bad_server import BadServer, RawServer

CONTENT = bytes(range(256)) * 12_000
SIZE = len(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = CacheConfig(give_up_s=20, timeout_s=2)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("data.remote.download.FIRST_DELAY_S", 0.01)
    (tmp_path / "a b.tar").write_bytes(CONTENT)
    with BadServer(tmp_path) as server:
        yield server


def fetch(server, *, name="a b.tar", config=QUICK, size_bytes=SIZE, sha256=DIGEST):
    file = io.BytesIO()
    done = download(f"{server.url}/{name}", file, config=config, size_bytes=size_bytes, sha256=sha256)
    assert done == len(file.getvalue())
    return file.getvalue()


def test_a_sound_server_is_asked_once(server):
    assert fetch(server) == CONTENT
    assert len(server.requests) == 1
    assert download_bytes(f"{server.url}/a b.tar", config=QUICK) == CONTENT


@pytest.mark.parametrize("fault", ["busy", "dropped", "truncated"])
def test_most_requests_may_fail(server, fault):
    setattr(server, fault, 0.7)
    for _ in range(5):
        assert fetch(server) == CONTENT
    assert len(server.requests) > 8


def test_a_broken_download_goes_on_where_it_stopped(server):
    server.truncated = 1.0
    assert fetch(server) == CONTENT
    starts = [int(headers["Range"][6:-1]) for _, headers in server.requests[1:]]
    assert starts[:2] == [SIZE // 2, SIZE * 3 // 4]
    assert starts == sorted(set(starts))


def test_a_server_without_ranges_starts_again(server):
    server.ranges, server.truncated = False, 0.6
    assert fetch(server) == CONTENT
    assert len(server.requests) > 1


def test_a_silent_server_is_given_up_in_time(server):
    server.hanging = 1.0
    start = time.monotonic()
    with pytest.raises(
        GaveUpError, match=r"(timed out|silent).*gave up after \d attempts in \d s \(data.cache.give-up-s"
    ):
        fetch(server, config=CacheConfig(give_up_s=1, timeout_s=0.3))
    assert time.monotonic() - start < 2


def test_a_dripping_server_is_given_up_in_time(server):
    server.drip_s = 0.05
    start = time.monotonic()
    with pytest.raises(GaveUpError, match="is slow"):
        fetch(server, config=CacheConfig(give_up_s=1, timeout_s=1))
    assert time.monotonic() - start < 2


def test_a_server_that_stays_busy_is_given_up_and_named(server, caplog):
    server.busy = 1.0
    with caplog.at_level(logging.WARNING), pytest.raises(GaveUpError, match=r"a b.tar answered 503 .*; gave up after"):
        fetch(server, config=CacheConfig(give_up_s=1, timeout_s=1))
    assert "503" in caplog.text
    assert len(server.requests) < 40, "waits must grow"


def test_a_dead_server_is_given_up(server):
    server.__exit__()
    with pytest.raises(GaveUpError, match="ConnectionRefusedError"):
        fetch(server, config=CacheConfig(give_up_s=0.3, timeout_s=0.3))


def test_a_missing_file_is_not_asked_for_again(server):
    with pytest.raises(ValueError, match=r"/b.tar cannot be read: 404"):
        fetch(server, name="b.tar")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("size", "digest", "words"),
    [
        (len(CONTENT), "0" * 64, "has sha256 .* the manifest says 000000000000"),
        (len(CONTENT) + 1, DIGEST, f"has {len(CONTENT)} bytes, the manifest says {len(CONTENT) + 1}"),
        (len(CONTENT) - 1, DIGEST, f"has {len(CONTENT)} bytes, the manifest says {len(CONTENT) - 1}"),
    ],
)
def test_wrong_content_is_read_twice_and_then_refused(server, size, digest, words):
    with pytest.raises(ValueError, match=words + r".*, 2 times in a row: it is not the file of the manifest"):
        fetch(server, size_bytes=size, sha256=digest)
    assert len(server.requests) == 2


def test_a_file_of_unknown_size_is_bounded(server, monkeypatch):
    monkeypatch.setattr("data.remote.download.MAX_BYTES_UNKNOWN", 1000)
    with pytest.raises(ValueError, match="has more than 1000 bytes"):
        download_bytes(f"{server.url}/a b.tar", config=QUICK)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_a_redirect_leads_to_no_other_scheme(server, target):
    server.redirect = target
    with pytest.raises(ValueError, match=r"neither http:// nor https://|is not allowed"):
        fetch(server, config=CacheConfig(give_up_s=60, timeout_s=5))
    assert len(server.requests) == 1


def test_logins_come_from_netrc_and_are_said_nowhere(server, tmp_path, monkeypatch, caplog):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    server.busy = 1.0
    with caplog.at_level(logging.DEBUG), pytest.raises(GaveUpError) as caught:
        fetch(server, config=CacheConfig(give_up_s=0.5, timeout_s=1))
    assert server.requests[0][1]["Authorization"] == "Basic bWU6aHVudGVyMg=="
    assert "hunter2" not in caplog.text + str(caught.value)
    assert "bWU6aHVudGVyMg" not in caplog.text + str(caught.value)


def test_local_files_are_read_the_same_way(tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    assert download_bytes(str(tmp_path / "a.tar"), config=QUICK, sha256=DIGEST) == CONTENT
    with pytest.raises(ValueError, match=r"b.tar cannot be read: No such file"):
        download_bytes(str(tmp_path / "b.tar"), config=QUICK)


DRIPS = {
    "headers": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "sizes of chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ", b"a"),
    "a body without length": (b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
    "a redirect's body": (b"HTTP/1.1 302 Found\r\nLocation: /b\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
}


@pytest.mark.parametrize("what", DRIPS)
def test_whatever_drips_is_given_up_in_time(what):
    head, drop = DRIPS[what]
    with RawServer(head, drop) as url:
        start = time.monotonic()
        with pytest.raises(GaveUpError, match=r"is slow.*gave up after \d+ attempts"):
            download_bytes(f"{url}/a", config=CacheConfig(give_up_s=0.6, timeout_s=0.5))
        assert time.monotonic() - start < 2


def test_what_a_server_says_does_not_steer_the_terminal():
    words = b"HTTP/1.1 404 \x1b[2J\x1b]0;owned\x07" + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n"
    with RawServer(words, b"") as url, pytest.raises(UserError) as refused:
        download_bytes(f"{url}/a", config=QUICK)
    assert str(refused.value).isprintable()
    assert "404" in str(refused.value)
    assert len(str(refused.value)) < 400
