"""The file of bad samples: each once, nothing past the checkpoint, and a limit that names it."""

import json
from pathlib import Path

import pytest

from engine.config import DistributedConfig
from engine.distributed.engine import Engine
from engine.loop.bad_samples import BadSamples


@pytest.fixture(scope="module")
def engine():
    return Engine(DistributedConfig(engine="single"))


@pytest.fixture
def start(tmp_path, engine):
    def start(*, max_share=1.0, steps_done=0, total=0) -> BadSamples:
        options = {"max_share": max_share, "steps_done": steps_done, "total": total}
        return BadSamples(tmp_path, engine=engine, shard_of=lambda number: f"shard-{number // 10}", **options)

    return start


def ledger(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]


def test_a_bad_sample_is_listed_once_and_counted_each_time(start, tmp_path):
    bad = start()
    for step in range(3):
        bad.note([(17, "000017", "no JPEG"), (4, "000004", "cut\nshort")], key=(step, 1))
        assert bad.settle(8 * (step + 1)) == 2
    assert bad.settle(32) == 0
    assert bad.total == 6
    assert ledger(tmp_path) == [
        {"step": 0, "micro_batch": 1, "shard": "shard-1", "key": "000017", "reason": "no JPEG", "id": 17},
        {"step": 0, "micro_batch": 1, "shard": "shard-0", "key": "000004", "reason": "cut\nshort", "id": 4},
    ]


def test_lines_come_in_the_order_of_steps(start, tmp_path):
    bad = start()
    for key in [(1, 0), (0, 1), (1, 1), (0, 0)]:
        bad.note([(10 * key[0] + key[1], "x", "y"), (99, "x", "y")], key=key)
    bad.settle(8)
    assert [(line["step"], line["micro_batch"], line["id"]) for line in ledger(tmp_path)] == [
        (0, 0, 0),
        (0, 0, 99),
        (0, 1, 1),
        (1, 0, 10),
        (1, 1, 11),
    ]


def test_a_resumed_run_lists_what_the_uninterrupted_one_does(start, tmp_path):
    def go_on(bad, steps):
        for step in steps:
            bad.note([(number, "x", "y") for number in (step, step // 2)], key=(step, 0))
            bad.settle(8 * (step + 1))
        return bad.total

    total = go_on(start(), range(6))
    whole = ledger(tmp_path)
    with (tmp_path / "bad_samples.jsonl").open("a") as file:
        file.write('{"step": 2, "micro')  # cut short by a kill
    assert go_on(start(steps_done=3, total=6), range(3, 6)) == total
    assert ledger(tmp_path) == whole
    start()
    assert ledger(tmp_path) == []


def test_too_many_stop_the_run_and_the_message_names_the_ledger(start, tmp_path):
    bad = start(max_share=0.01)
    bad.note([(number, "x", "y") for number in range(10)], key=(0, 0))
    assert bad.settle(16) == 10  # 1 % of 1000: of fewer a share says little
    bad.note([(11, "x", "y")], key=(1, 0))
    with pytest.raises(
        ValueError, match=r"11 of the 32 samples .* data.max-bad-share 0.01 allows; .*bad_samples.jsonl"
    ):
        bad.settle(32)
    assert len(ledger(tmp_path)) == 11
    bad = start(max_share=0.01, steps_done=2, total=11)
    bad.note([(12, "x", "y")], key=(200, 0))
    assert bad.settle(3200) == 1


def test_a_limit_of_zero_allows_none(start):
    bad = start(max_share=0.0)
    assert bad.settle(8) == 0
    bad.note([(3, "x", "y")], key=(1, 0))
    with pytest.raises(ValueError, match="1 of the 16 samples so far could not be decoded"):
        bad.settle(16)
