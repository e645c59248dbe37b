"""Members of a file in one pass: the same bytes in fewer requests."""

import os

import numpy as np
import pytest

from data.shards.index import Member
from data.shards.reading import ReadingCounters, advise, read_members, spans_of


def member(offset, size):
    return Member(extension="jpg", offset=offset, size=size)


@pytest.fixture
def file(tmp_path):
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "a.tar").write_bytes(content)
    descriptor = os.open(tmp_path / "a.tar", os.O_RDONLY)
    yield descriptor, content
    os.close(descriptor)


@pytest.mark.parametrize("gap", [0, 1000, 10**9])
def test_contents_are_those_of_single_reads_whatever_is_merged(file, gap, monkeypatch):
    descriptor, content = file
    monkeypatch.setattr("data.shards.reading.spans_of", lambda members: spans_of(members, max_gap_bytes=gap))
    rng = np.random.default_rng(1)
    members = [member(int(offset), int(rng.integers(0, 3000))) for offset in rng.integers(0, 297_000, 200)]
    counters = ReadingCounters()
    advise(descriptor, members)
    found = read_members(descriptor, members, counters=counters)
    assert found == [content[m.offset : m.offset + m.size] for m in members]
    assert counters.used_bytes == sum(m.size for m in members)
    assert counters.requests == len([span for span in spans_of(members, max_gap_bytes=gap) if span.end > span.offset])


def test_neighbours_are_read_together_and_distant_ones_apart():
    members = [member(5000, 100), member(0, 100), member(512, 100), member(0, 100)]
    spans = spans_of(members, max_gap_bytes=1000)
    assert [(span.offset, span.end, span.members) for span in spans] == [(0, 612, [1, 3, 2]), (5000, 5100, [0])]


def test_a_request_is_bounded_unless_one_member_is_larger():
    spans = spans_of([member(n * 2**20, 2**20) for n in range(20)] + [member(2**25, 2**25)])
    assert [(span.end - span.offset) / 2**20 for span in spans] == [8, 8, 4, 32]


def test_counters_say_what_a_byte_cost(file):
    descriptor, _ = file
    counters = ReadingCounters()
    read_members(descriptor, [member(0, 1000), member(3000, 1000)], counters=counters)
    before = ReadingCounters(requests=counters.requests, read_bytes=4000, used_bytes=2000, read_s=counters.read_s)
    assert counters == before
    assert counters.metrics()["read_bytes_per_byte_used"] == 2
    read_members(descriptor, [member(0, 10)], counters=counters)
    assert (counters.since(before).requests, counters.since(before).read_bytes) == (1, 10)


def test_a_file_that_ends_too_early_says_so(file):
    with pytest.raises(EOFError):
        read_members(file[0], [member(299_999, 2)], counters=ReadingCounters())
