"""Whole remote files, tried again until they are what they should be or their time is up."""

import hashlib
import io
import logging
import random
import time
from typing import IO

from data.remote.config import CacheConfig
from data.remote.streams import Stream, UnavailableError, open_stream
from engine.errors import UserError, waiting_for

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 20.0
TRIES_OF_WRONG_CONTENT = 2
MAX_BYTES_UNKNOWN = 2**30  # of files whose size no manifest gives


class GaveUpError(OSError, UserError):
    """A file that could not be read in the time that is given for it; programs end on it with one line."""


class Backoff:
    """Waits between attempts, each time about twice as long, until the time is up."""

    def __init__(self, *, give_up_s: float) -> None:
        self._start = time.monotonic()
        self._give_up_s = give_up_s
        self._random = random.Random()
        self._failures = self._in_a_row = 0

    @property
    def deadline_s(self) -> float:
        """The time, of `time.monotonic`, at which to give up."""
        return self._start + self._give_up_s

    @property
    def time_is_up(self) -> bool:
        """Whether to give up."""
        return time.monotonic() > self.deadline_s

    def progress(self) -> None:
        """Start again with short waits."""
        self._in_a_row = 0

    def wait(self, error: Exception) -> None:
        """Wait before the next attempt.

        Raises:
            GaveUpError: the time would be up before it.
        """
        self._failures += 1
        delay_s = min(FIRST_DELAY_S * 2**self._in_a_row, LONGEST_DELAY_S) * self._random.uniform(0.5, 1)
        self._in_a_row = min(self._in_a_row + 1, 16)
        if time.monotonic() + delay_s - self._start > self._give_up_s:
            raise GaveUpError(
                f"{error}; gave up after {self._failures} attempts in {time.monotonic() - self._start:.0f} s "
                "(data.cache.give-up-s is the limit)"
            ) from error
        logger.log(logging.WARNING if self._failures in (3, 10, 30) else logging.DEBUG, "%s; trying again", error)
        time.sleep(delay_s)


def download(
    location: str, file: IO[bytes], *, config: CacheConfig, size_bytes: int | None = None, sha256: str | None = None
) -> int:
    """Write the content of ``location`` into ``file`` and return its size; resumes where a connection broke off.

    Raises:
        GaveUpError: it could not be read in time.
        OSError: ``file`` could not be written.
        UserError: there is no such file, or its size or digest is wrong, twice.
    """
    backoff = Backoff(give_up_s=config.give_up_s)
    transfer = _Transfer(location, file, config=config, backoff=backoff)
    fault = None
    for _ in range(TRIES_OF_WRONG_CONTENT):  # a proxy or a half-written file is wrong once, a wrong file always
        with waiting_for(location):
            fault = transfer.whole(size_bytes)
        fault = fault or transfer.compare(sha256)
        if fault is None:
            return transfer.done
        logger.warning("%s %s", location, fault)
        transfer.restart()
    raise UserError(
        f"{location} {fault}, {TRIES_OF_WRONG_CONTENT} times in a row: it is not the file of the manifest; copy it "
        "there again, or run `python data/main.py index` if it was changed on purpose"
    )


def download_bytes(location: str, *, config: CacheConfig, sha256: str | None = None) -> bytes:
    """Fetch a small file; raises like `download`."""
    content = io.BytesIO()
    download(location, content, config=config, sha256=sha256)
    return content.getvalue()


class _Transfer:
    """One file on its way: how far it has come, over all attempts."""

    def __init__(self, location: str, file: IO[bytes], *, config: CacheConfig, backoff: Backoff) -> None:
        self.done = 0
        self._location, self._file, self._config, self._backoff = location, file, config, backoff
        self._hash = hashlib.sha256()

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.done, self._hash = 0, hashlib.sha256()

    def whole(self, size_bytes: int | None) -> str | None:
        """Read to the end, in as many attempts as it takes; say what is wrong with the size, if anything."""
        while True:
            try:
                return self._attempt(size_bytes)
            except UnavailableError as error:
                self._backoff.wait(error)

    def compare(self, sha256: str | None) -> str | None:
        if sha256 is None or self._hash.hexdigest() == sha256:
            return None
        return f"has sha256 {self._hash.hexdigest()[:12]}…, the manifest says {sha256[:12]}…"

    def _attempt(self, size_bytes: int | None) -> str | None:
        with open_stream(
            self._location, start=self.done, timeout_s=self._config.timeout_s, deadline_s=self._backoff.deadline_s
        ) as stream:
            if stream.start != self.done:
                self.restart()
            if None not in (stream.size_bytes, size_bytes) and stream.size_bytes != size_bytes:
                return f"has {stream.size_bytes} bytes, the manifest says {size_bytes}"
            limit = MAX_BYTES_UNKNOWN if size_bytes is None else size_bytes
            self._take(stream, limit=limit)
        if self.done > limit:
            return f"has more than {limit} bytes"
        expected = stream.size_bytes if size_bytes is None else size_bytes
        if expected is not None and self.done < expected:
            raise UnavailableError(f"{self._location} ended after {self.done} of {expected} bytes")
        return None

    def _take(self, stream: Stream, *, limit: int) -> None:
        for chunk in stream.chunks:
            self._file.write(chunk)
            self._hash.update(chunk)
            self.done += len(chunk)
            self._backoff.progress()
            if self.done > limit:
                return
            if self._backoff.time_is_up:
                raise UnavailableError(f"{self._location} is slow: {self.done} bytes so far")
