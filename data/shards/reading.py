"""Reads many members of one file at once: in file order, near neighbours in one request, the kernel told beforehand.

A network file system answers each request after its own delay, whatever its size; so bytes between two members are read
along where that is cheaper than a request of their own.
"""

import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from data.shards.index import Member

MAX_GAP_BYTES = 128 * 1024
"""Bytes read along between two members rather than asking twice: 1.3 ms of a server that delivers 100 MB/s."""
MAX_SPAN_BYTES = 8 * 2**20
"""Most bytes of one request, which are held twice for a moment."""


@dataclass(kw_only=True)
class ReadingCounters:
    """What reading cost so far."""

    requests: int = 0
    """Reads from files."""
    read_bytes: int = 0
    """Bytes that were read."""
    used_bytes: int = 0
    """Bytes of them that were asked for."""
    read_s: float = 0.0
    """Seconds spent in reading files."""
    wait_s: float = 0.0
    """Seconds spent in waiting for downloads."""
    fetched_bytes: int = 0
    """Bytes downloaded into the cache."""

    def since(self, earlier: "ReadingCounters") -> "ReadingCounters":
        """Take off what came before ``earlier``."""
        return self._combined(earlier, operator.sub)

    def __add__(self, other: "ReadingCounters") -> "ReadingCounters":
        """Add up what both cost."""
        return self._combined(other, operator.add)

    def _combined(self, other: "ReadingCounters", operation: Callable[[Any, Any], Any]) -> "ReadingCounters":
        return ReadingCounters(
            **{f.name: operation(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        )

    def metrics(self) -> dict[str, float]:
        """Name them for a report, with their units."""
        return {
            "read_mib": self.read_bytes / 2**20,
            "read_bytes_per_byte_used": self.read_bytes / max(self.used_bytes, 1),
            "read_requests": self.requests,
            "read_s": self.read_s,
            "read_requests_per_s": self.requests / max(self.read_s, 1e-9),
            "download_mib": self.fetched_bytes / 2**20,
            "download_wait_s": self.wait_s,
        }


@dataclass(kw_only=True)
class Span:
    """Bytes of a file that are read in one request."""

    offset: int
    end: int
    members: list[int] = field(default_factory=list[int])
    """Which of the members that were asked for lie in it."""


def spans_of(members: Sequence[Member], *, max_gap_bytes: int = MAX_GAP_BYTES) -> list[Span]:
    """Plan what to read for ``members``, in the order of the file."""
    spans: list[Span] = []
    for number in sorted(range(len(members)), key=lambda n: members[n].offset):
        start, end = members[number].offset, members[number].offset + members[number].size
        last = spans[-1] if spans else None
        if last is None or start > last.end + max_gap_bytes or max(end, last.end) - last.offset > MAX_SPAN_BYTES:
            last = Span(offset=start, end=end)
            spans.append(last)
        last.end = max(last.end, end)
        last.members.append(number)
    return spans


def advise(descriptor: int, members: Sequence[Member]) -> None:
    """Tell the kernel that these will be read, so that it asks for all of them at once."""
    for span in spans_of(members):
        os.posix_fadvise(descriptor, span.offset, span.end - span.offset, os.POSIX_FADV_WILLNEED)


def read_members(descriptor: int, members: Sequence[Member], *, counters: ReadingCounters) -> list[bytes]:
    """Read the bytes of ``members``, in their order.

    Raises:
        EOFError: the file ends before one of them does.
    """
    contents = [b""] * len(members)
    start = time.monotonic()
    for span in spans_of(members):
        content = b"".join(_pieces(descriptor, span, counters=counters))
        for number in span.members:  # a slice of all of it is no copy
            first = members[number].offset - span.offset
            contents[number] = content[first : first + members[number].size]
    counters.used_bytes += sum(member.size for member in members)
    counters.read_s += time.monotonic() - start
    return contents


def _pieces(descriptor: int, span: Span, *, counters: ReadingCounters) -> Iterator[bytes]:
    offset = span.offset
    while offset < span.end:  # pread may return less than asked for
        piece = os.pread(descriptor, span.end - offset, offset)
        counters.requests += 1
        counters.read_bytes += len(piece)
        if not piece:
            raise EOFError
        offset += len(piece)
        yield piece
