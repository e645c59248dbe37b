"""Micro-batches by number: the same ones whatever the workers, and errors that say where they arose."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images.decode import decode_samples, read_header
from data.images.transforms import crop_resize, random_crop
from data.loading.loader import (
    LoadingError,
    PassingLoadingError,
    evaluation_batches,
    handing_over,
    training_batches,
)
from data.loading.order import Order
from data.remote.config import CacheConfig
from data.shards.shard_set import open_shards
from engine.errors import PassingError, UserError
from engine.randomness import stream


@dataclass(frozen=True)
class Plan:
    rows: np.ndarray
    name: str


class Crops:
    """Crops like those of pretraining, with a value object beside them."""

    def __call__(self, samples, *, step, micro_batch):
        def crop(sample):
            rng = stream(0, "crop", step, micro_batch, sample.id, sample.repeat)
            header = read_header(sample.image)
            return crop_resize(sample.image, random_crop(header.height, header.width, rng=rng), size=(16, 16))

        decoded = decode_samples(samples, crop)
        return {
            "images": np.stack(decoded.values),
            "ids": np.array([sample.id for sample in decoded.samples]),
            "plan": Plan(rows=np.full(3, step), name=f"{step}/{micro_batch}"),
            "bad": decoded.bad,
            "worker": multiprocessing.parent_process() is not None,
            "threads": torch.get_num_threads(),
        }


class Fails:
    """Fails in step 2."""

    def __init__(self, error):
        self.error = error

    def __call__(self, samples, *, step, micro_batch):
        if step == 2:
            raise self.error
        return {"ids": np.array([sample.id for sample in samples])}


def batches(shards, *, builder=None, workers=0, first=0, last=4, micro_batches=range(2), size=2, **options):
    order = Order(shards.sizes, batch_size=2 * size, micro_batch_size=size, seed=5)
    return training_batches(
        shards,
        order,
        builder or Crops(),
        micro_batches=micro_batches,
        first_step=first,
        last_step=last,
        workers=workers,
        **options,
    )


def test_the_number_of_workers_changes_nothing(write):
    shards = write()
    alone = list(batches(shards))
    assert [batch["plan"].name for batch in alone] == [f"{step}/{number}" for step in range(4) for number in range(2)]
    assert not alone[0]["worker"]
    for workers in (1, 3):
        several = list(batches(shards, workers=workers))
        assert all(batch["worker"] and batch["threads"] == 1 for batch in several)
        for one, other in zip(alone, several, strict=True):
            assert torch.equal(one["images"], other["images"])
            assert torch.equal(one["ids"], other["ids"])
            assert one["plan"].name == other["plan"].name


def test_starting_later_and_other_processes_see_the_same_samples(write):
    shards = write()
    whole = [batch["ids"].tolist() for batch in batches(shards, last=8)]
    assert [batch["ids"].tolist() for batch in batches(shards, first=3, last=8)] == whole[6:]
    assert [batch["ids"].tolist() for batch in batches(shards, last=8, micro_batches=range(1, 2))] == whole[1::2]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_no_array_is_passed_on_untouched(write, workers):
    batch = next(iter(batches(write(), workers=workers, first=3)))
    assert isinstance(batch["images"], torch.Tensor)
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].shape == (2, 3, 16, 16)
    assert type(batch["plan"]) is Plan
    assert type(batch["plan"].rows) is np.ndarray
    assert batch["plan"].rows.tolist() == [3, 3, 3]
    assert batch["bad"] == []


def test_skipped_micro_batches_are_left_out(write):
    names = [batch["plan"].name for batch in batches(write(), last=2, skip={(0, 1), (1, 0)})]
    assert names == ["0/0", "1/1"]


@pytest.mark.parametrize("workers", [0, 2])
def test_beginning_again_gives_what_a_new_loader_gives_and_ends_the_workers_of_the_first(write, workers):
    shards = write()
    again = batches(shards, workers=workers, first=2)
    assert [next(again)["plan"].name for _ in range(3)] == ["2/0", "2/1", "3/0"]
    first = set(multiprocessing.active_children())
    again.restart(first_step=1, skip={(2, 1)})
    expected = list(batches(shards, first=1, skip={(2, 1)}))
    for one, other in zip(expected, again, strict=True):
        assert one["plan"].name == other["plan"].name
        assert torch.equal(one["images"], other["images"])
        assert one["keys"] == other["keys"]
    assert len(first) == workers
    assert not any(process.is_alive() for process in first)


def test_a_bad_sample_is_replaced_the_same_way_every_time(write):
    shards = write(broken={3, 4, 11})
    first, second = (
        [(b["ids"].tolist(), b["bad"]) for b in batches(shards, last=2, size=5, workers=w)] for w in (0, 2)
    )
    assert first == second
    bad = [entry for _, found in first for entry in found]
    assert {number for number, _, _ in bad} == {3, 4, 11}
    assert all("JPEG" in reason and key == f"{number:06d}" for number, key, reason in bad)
    assert not {3, 4, 11} & {number for ids, _ in first for number in ids}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_was_damaged_later_stops_the_run_and_is_not_replaced(write, tmp_path, workers, local):
    shards = write()
    shards = open_shards(shards.folder, cache=CacheConfig(folder=tmp_path / "cache", gib=1, local=local))
    shard, position, _ = Order(shards.sizes, batch_size=4, micro_batch_size=2, seed=5).micro_batch(2, 0)[0].tolist()
    list(batches(shards, last=6))  # into the cache
    path = shards.folder / shards.manifest.shards[shard].name
    path = shards.cache.path(shards.cached_tar(shard)) if local else path
    content = bytearray(path.read_bytes())
    content[shards.entries(shard)[position].image.offset] ^= 1
    path.write_bytes(content)
    found = batches(shards, workers=workers)
    for _ in range(4):
        next(found)
    with pytest.raises(LoadingError, match=rf"micro-batch 0 of step 2: .*{path.name}.* has changed since its manifest"):
        next(found)


def test_a_micro_batch_without_a_good_sample_says_so(write):
    with pytest.raises(LoadingError, match=r"micro-batch 0 of step 0: none of the 2 samples"):
        next(batches(write(broken=set(range(23)))))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "may_pass"),
    [(UserError("no such\nthing"), False), (OSError(5, "broken disk"), True), (PassingError("no such luck"), True)],
)
def test_an_error_in_a_worker_reaches_the_trainer_with_its_message(write, workers, error, may_pass):
    found = batches(write(), builder=Fails(error), workers=workers)
    for _ in range(4):
        next(found)
    with pytest.raises(LoadingError, match=r"^micro-batch 0 of step 2: (no such|.*broken disk)") as raised:
        next(found)
    assert isinstance(raised.value, PassingError) == may_pass, "what is no refusal of the data is tried again"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [KeyError("lost"), ValueError("too many values to unpack")], ids=["key", "value"])
def test_a_bug_in_a_builder_keeps_its_type_its_place_and_its_micro_batch(write, workers, error):
    with pytest.raises(type(error)) as caught:
        list(batches(write(), builder=Fails(error), workers=workers))
    trace = "".join(traceback.format_exception(caught.value))
    assert f'{Path(__file__).name}", line' in trace
    assert "raise self.error" in trace
    assert "while micro-batch 0 of step 2 was built" in trace


def test_an_iterator_dropped_midway_ends_its_workers_at_once(write):
    before = multiprocessing.active_children()
    found = batches(write(), workers=2, last=1000)
    next(found)
    workers = [process for process in multiprocessing.active_children() if process not in before]
    assert len(workers) == 2
    start = time.monotonic()
    del found
    for worker in workers:
        worker.join(timeout=5)
        assert worker.exitcode is not None
    assert time.monotonic() - start < 3


def test_a_program_that_an_error_ends_does_not_wait_for_its_workers(write):
    """They ignore SIGTERM, and the frames of an uncaught error keep their iterator alive."""
    words = [sys.executable, "-c", DIES_OF_AN_ERROR, str(write().folder)]
    start = time.monotonic()
    done = subprocess.run(words, cwd=Path(__file__).parents[4], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: elsewhere")
    assert time.monotonic() - start < 40


DIES_OF_AN_ERROR = """
import sys
from data.loading.loader import training_batches
from data.shards.shard_set import open_shards
from data.loading.order import Order

def ids(samples, *, step, micro_batch):
    return {"ids": [sample.id for sample in samples]}

def main():
    shards = open_shards(sys.argv[1])
    order = Order(shards.sizes, batch_size=4, micro_batch_size=2, seed=0)
    batches = training_batches(
        shards, order, ids, micro_batches=range(2), first_step=0, last_step=1000, workers=2
    )
    next(batches)
    raise RuntimeError("elsewhere")

main()
"""


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_covers_every_sample_once(write, world_size, workers):
    shards = write()
    found = [
        number
        for rank in range(world_size)
        for batch in evaluation_batches(
            shards, Crops(), micro_batch_size=4, rank=rank, world_size=world_size, workers=workers
        )
        for number in batch["ids"].tolist()
    ]
    assert found == list(range(23))


def test_samples_are_those_written(write, encoded):
    shards = write()
    assert shards.num_samples == 23
    assert shards.sizes == (5, 5, 5, 5, 3)
    sample = shards.read(3, 2, repeat=1)
    assert (sample.id, sample.key, sample.label, sample.repeat) == (17, "000017", 17 % 3, 1)
    assert sample.image == encoded(17)
    assert shards.labels().tolist() == [number % 3 for number in range(23)]


def test_a_subset_keeps_global_numbers(write):
    shards = write().subset([20, 3, 4, 11, 3])
    assert shards.num_samples == 4
    assert shards.sizes == (2, 0, 1, 0, 1)
    assert [shards.read(*place).id for place in [(0, 0), (0, 1), (2, 0), (4, 0)]] == [3, 4, 11, 20]
    assert shards.labels().tolist() == [0, 1, 2, 2]
    assert shards.read(4, 0).key == "000020"
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 23\)"):
        write(name="other").subset([23])


def test_open_shards_pickle_without_their_files(write):
    shards = write()
    shards.read(0, 0)
    assert len(pickle.dumps(shards)) < 20_000
    assert pickle.loads(pickle.dumps(shards)).read(1, 1).id == 6


def test_few_files_stay_open(write, monkeypatch):
    monkeypatch.setattr("data.shards.shard_set.MAX_OPEN_SHARDS", 2)
    shards = write()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for shard in range(5):
        shards.read(shard, 0)
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # noqa: PTH208
    assert shards.read(0, 0).id == 0


def test_a_read_that_fails_once_is_tried_again_and_then_stops_the_run(write, monkeypatch):
    monkeypatch.setattr("data.shards.shard_set.RETRY_DELAY_S", 0.0)
    shards, failures, pread = write(), [OSError(5, "stale")], os.pread
    monkeypatch.setattr("os.pread", lambda *a: pread(*a) if not failures else (_ for _ in ()).throw(failures.pop()))
    assert shards.read(1, 0).id == 5
    failures += [OSError(5, "stale")] * 3
    with pytest.raises(OSError, match="stale"):
        shards.read(1, 0)


def test_opening_a_shard_that_fails_once_is_tried_again_and_then_stops_the_run(write, monkeypatch):
    monkeypatch.setattr("data.shards.shard_set.RETRY_DELAY_S", 0.0)
    shards, failures, opened = write(), [OSError(5, "stale")], os.open

    def failing(path, *options, **more):
        if failures and str(path).endswith(".tar"):
            raise failures.pop()
        return opened(path, *options, **more)

    monkeypatch.setattr("os.open", failing)
    assert shards.read(1, 0).id == 5
    assert not failures
    failures += [OSError(5, "stale")] * 30
    with pytest.raises(OSError, match="stale"):
        shards.read(2, 0)


def test_missing_and_changed_shards_are_named(write, tmp_path):
    write()
    folder = tmp_path / "shards"
    with (folder / "shard-000001.tar").open("ab") as file:
        file.write(b"x")
    (folder / "shard-000002.tar").unlink()
    (folder / "shard-000003.idx").unlink()
    (folder / "shard-000004.idx").write_bytes(b"x" * 100)
    shards = open_shards(folder)
    for number, words in enumerate(
        [
            "shard-000001.tar has .* truncated or replaced",
            "shard-000002.tar is missing",
            "index .* is missing",
            "no shard index",
        ],
        1,
    ):
        with pytest.raises(ValueError, match=words):
            shards.read(number, 0)


def test_folders_without_a_manifest_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest.json; write shards with"):
        open_shards(tmp_path)
    with pytest.raises(ValueError, match="nowhere is no folder"):
        open_shards(tmp_path / "nowhere")
    for text in ("{}", "[", '{"format": 9, "shards": [], "classes": null}', '{"format": 1, "shards": [{"name": "x"}]}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="is no manifest of this program"):
            open_shards(tmp_path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("write to file </torch_1>: No space left on device (28)", "no room for a micro-batch in shared.*--shm-size"),
        ("open shared memory object </torch_1>: Too many open files (24)", "^Too many open files; raise.*ulimit -n$"),
    ],
)
def test_shared_memory_that_is_refused_reaches_the_trainer(write, monkeypatch, error, words):
    def refuse(_tensor):
        raise RuntimeError(f"unable to {error}")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(PassingLoadingError, match=words):
        next(batches(write(), workers=1))


def test_other_faults_of_sharing_keep_their_traceback(write, monkeypatch):
    def refuse(_tensor):
        raise RuntimeError("no storage")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(RuntimeError, match="no storage"):
        next(batches(write(), workers=1))


def test_workers_are_not_started_where_shared_memory_is_full(write, monkeypatch):
    monkeypatch.setattr("data.loading.loader.free_shared_bytes", lambda: 1000)
    shards = write()
    with pytest.raises(PassingError, match=r"0.0 MiB free, through which loader workers hand over.*--data.workers"):
        batches(shards, workers=1)
    assert len(list(batches(shards, workers=0))) == 8


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(), FileNotFoundError(2, "no such file")])
def test_a_worker_that_ends_while_it_hands_over_is_one_line(error):
    words = r"a loader worker ended unexpectedly while it handed over.*--data\.workers"
    with pytest.raises(PassingLoadingError, match=words), handing_over(1):
        raise error
    with pytest.raises(type(error)), handing_over(0):  # then it is no worker's
        raise error
