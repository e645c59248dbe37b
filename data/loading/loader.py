"""Micro-batches for a process, by number: whole ones, built in worker processes, handed over in order.

A micro-batch is named by its key (step, micro_batch), so which worker builds it, and how many there are, changes
nothing. What is in it is the builder's business: a picklable object that turns samples into a dict.
"""

import atexit
import contextlib
import logging
import multiprocessing
import os
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.loading.order import TrainingOrder, evaluation_micro_batch, evaluation_range
from data.loading.passes import IntArray
from data.loading.prefetch import RowsOf, leave_signals_to_trainer, prefetching
from data.loading.working_set import check_cache
from data.shards.shard_set import Sample, ShardSet
from engine.errors import PassingError, Stopped, UserError, explain_files, waiting_for
from engine.loop.device_feed import tensors_in
from engine.terms import MicroBatchKey

logger = logging.getLogger(__name__)

PREFETCHED_PER_WORKER = 2
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_BYTES = 2**20
_SYSTEM_ERROR = re.compile(r": [^:()]+ \(\d+\)")
"""How torch hands on what the system says: `No space left on device (28)`."""
SHARED_MEMORY_ADVICE = (
    "free some, enlarge it (docker run --shm-size 8g; mount -o remount,size=8g /dev/shm), or use fewer "
    "--data.workers, 0 for none"
)


class Builder(Protocol):
    """Turns samples into a micro-batch; runs in the worker, and must pickle.

    What it needs of a sample beside the image and the label it names in ``extensions`` (`json`, `seg.png`).
    """

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Build the micro-batch. Arrays become tensors, everything else is passed on as it is."""
        ...


class LoadingError(UserError):
    """Samples that could not be read or built; the message names step and micro-batch."""


class PassingLoadingError(LoadingError, PassingError):
    """The same, for a reason that may pass: storage that does not answer, a machine that lacks something for now."""


class TrainingBatches(Iterator[dict[str, Any]]):
    """Micro-batches in their order; each is a function of its key, so they can begin again anywhere."""

    def __init__(
        self,
        begin: Callable[[int, frozenset[MicroBatchKey]], Iterator[dict[str, Any]]],
        *,
        first_step: int,
        skip: frozenset[MicroBatchKey],
    ) -> None:
        self._begin, self._iterator = begin, begin(first_step, skip)

    def restart(self, *, first_step: int, skip: Collection[MicroBatchKey]) -> None:
        """Go on with ``first_step``, leaving out the micro-batches (step, number) of ``skip``."""
        self.close()
        self._iterator = self._begin(first_step, frozenset(skip))

    def close(self) -> None:
        """End the loader's processes."""
        getattr(self._iterator, "close", lambda: None)()

    def __next__(self) -> dict[str, Any]:
        return next(self._iterator)


def training_batches(
    shards: ShardSet,
    order: TrainingOrder,
    builder: Builder,
    *,
    micro_batches: range,
    first_step: int,
    last_step: int,
    workers: int,
    pin: bool = False,
    skip: Collection[MicroBatchKey] = (),
) -> TrainingBatches:
    """Yield ``micro_batches`` of each step from ``first_step`` up to, without, ``last_step``, but for those to skip.

    ``"reading"`` in each says what reading it cost (`ReadingCounters`).

    Raises:
        UserError: the cache of remote shards is too small; says so before anything is read.
    """
    check_shared_memory(workers=workers)
    check_cache(shards, order, micro_batches=micro_batches, first_step=first_step, environment=os.environ)
    dataset = _MicroBatches(shards=shards, rows_of=order.micro_batch, builder=builder)
    ahead = shards.cache.config.prefetch_steps * len(micro_batches)

    def begin(first_step: int, skip: frozenset[MicroBatchKey]) -> Iterator[dict[str, Any]]:
        keys = _Keys(first_step=first_step, last_step=last_step, micro_batches=micro_batches, skip=skip)
        return _load(dataset, keys=keys, workers=workers, pin=pin, ahead=ahead)

    return TrainingBatches(begin, first_step=first_step, skip=frozenset(skip))


def evaluation_batches(
    shards: ShardSet,
    builder: Builder,
    *,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield this process's share of all samples, in order; over all processes each comes exactly once.

    The builder gets step 0 and the number of the micro-batch. Processes may get different numbers of micro-batches.
    """
    check_shared_memory(workers=workers)
    numbers = evaluation_range(shards.num_samples, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
    keys = _Keys(first_step=0, last_step=1, micro_batches=numbers, skip=frozenset())
    rows_of = partial(_evaluation_rows, shards.sizes, micro_batch_size)
    dataset = _MicroBatches(shards=shards, rows_of=rows_of, builder=builder)
    return _load(dataset, keys=keys, workers=workers, pin=pin, ahead=shards.cache.config.prefetch_steps)


def _evaluation_rows(sizes: tuple[int, ...], micro_batch_size: int, _step: int, micro_batch: int) -> IntArray:
    return evaluation_micro_batch(sizes, micro_batch_size=micro_batch_size, number=micro_batch)


@dataclass(frozen=True, kw_only=True)
class _Keys(Sampler[MicroBatchKey]):
    first_step: int
    last_step: int
    micro_batches: range
    skip: frozenset[MicroBatchKey]

    def __iter__(self) -> Iterator[MicroBatchKey]:
        for step in range(self.first_step, self.last_step):
            for micro_batch in self.micro_batches:
                if (step, micro_batch) not in self.skip:
                    yield step, micro_batch


class _Batch:
    """A built micro-batch on its way: the loader must neither convert nor copy what is in it, only pin it."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def pin_memory(self) -> "_Batch":
        return _Batch({name: _pinned(value) for name, value in self.content.items()})


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """An error that the data or the file system caused, on its way to the trainer."""

    message: str
    may_pass: bool
    """Whether another start may succeed although nobody corrected anything."""

    @property
    def error(self) -> LoadingError:
        """What the trainer raises."""
        return PassingLoadingError(self.message) if self.may_pass else LoadingError(self.message)


@dataclass(kw_only=True)
class _MicroBatches(Dataset[_Batch | _Failure]):
    shards: ShardSet
    rows_of: RowsOf
    builder: Builder

    def __getitem__(self, key: MicroBatchKey) -> _Batch | _Failure:
        step, micro_batch = key
        try:
            before = self.shards.counters
            rows = self.rows_of(step, micro_batch).tolist()
            samples = self.shards.read_many(rows, extensions=getattr(self.builder, "extensions", ()))
            content = self.builder(samples, step=step, micro_batch=micro_batch)
            self.shards.confirm(sample_id for sample_id, _, _ in content.get("bad", ()))
            content["reading"] = self.shards.counters.since(before)
            content["keys"] = tuple(sample.key for sample in samples)
        except (UserError, OSError) as error:
            may_pass = isinstance(error, PassingError | OSError)
            return _Failure(message=f"micro-batch {micro_batch} of step {step}: {error}", may_pass=may_pass)
        except Exception as error:  # a bug: torch hands on its traceback, and with it the note
            error.add_note(f"while micro-batch {micro_batch} of step {step} was built")
            raise
        batch = _Batch({name: _as_tensor(value) for name, value in content.items()})
        return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: _Batch) -> _Batch | _Failure:
    """Move a batch's tensors to shared memory here: where that is full, the trainer hears of it.

    Torch would do it in a thread of the worker whose errors reach nobody, and the trainer would wait for ever.
    """
    try:
        for x in tensors_in(batch.content):
            x.share_memory_()
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _SYSTEM_ERROR.search(str(error)) is None:
            raise
        message = explain_files(error) or (
            f"no room for a micro-batch in shared memory ({error}); {SHARED_MEMORY_ADVICE}"
        )
        return _Failure(message=message, may_pass=True)
    return batch


def check_shared_memory(*, workers: int) -> None:
    """Refuse to start workers that cannot hand over anything.

    Raises:
        PassingError: shared memory is full, of this machine and for now.
    """
    if workers and (room := free_shared_bytes()) is not None and room < LEAST_SHARED_BYTES:
        raise PassingError(
            f"{SHARED_MEMORY} has {room / 2**20:.1f} MiB free, through which loader workers hand over images; "
            f"{SHARED_MEMORY_ADVICE}"
        )


def free_shared_bytes() -> int | None:
    """Measure the room that loader workers have, None where it is not a file system."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def _load(dataset: _MicroBatches, *, keys: _Keys, workers: int, pin: bool, ahead: int) -> Iterator[dict[str, Any]]:
    with prefetching(dataset.shards, dataset.rows_of, keys, ahead=ahead) as advance:
        with warnings.catch_warnings():
            # More workers than cores are the user's choice.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            iterator = iter(_torch_loader(dataset, keys=keys, workers=workers, pin=pin))
        try:
            while True:
                with waiting_for("the loader"), handing_over(workers):
                    item = next(iterator, None)
                if item is None:
                    return
                if isinstance(item, _Failure):
                    raise item.error
                content = cast(_Batch, item).content
                content["reading"].fetched_bytes += advance()
                yield content
        except (Stopped, LoadingError):
            _kill_workers()  # torch would wait some seconds for each, and they ignore SIGTERM
            raise


@contextlib.contextmanager
def handing_over(workers: int) -> Iterator[None]:
    """Say in words that a worker ended in the middle of handing something over: torch notices only when it waits."""
    try:
        yield
    except (EOFError, ConnectionError, FileNotFoundError) as error:
        if not workers:
            raise
        raise PassingLoadingError(
            f"a loader worker ended unexpectedly while it handed over a micro-batch ({type(error).__name__}); the "
            "machine may have run out of memory (`dmesg` says so): use fewer --data.workers, or smaller batches"
        ) from error


def _torch_loader(dataset: _MicroBatches, *, keys: _Keys, workers: int, pin: bool) -> DataLoader[_Batch | _Failure]:
    atexit.unregister(_kill_workers)
    atexit.register(_kill_workers)
    return DataLoader(
        dataset,
        sampler=keys,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=PREFETCHED_PER_WORKER if workers else None,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    )


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    leave_signals_to_trainer()


def _kill_workers() -> None:
    """End the workers of a program that an error ends: it would wait for them for ever, since they ignore SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _unchanged(item: Any) -> Any:
    return item


def _as_tensor(value: Any) -> Any:
    """Make arrays tensors, which travel through shared memory."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value if value.flags.writeable else value.copy())  # pyright: ignore[reportUnknownMemberType]
    return value


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    pin = getattr(value, "pin_memory", None)
    return pin() if callable(pin) else value
