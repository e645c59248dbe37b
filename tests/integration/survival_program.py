"""What ``test_survival.py`` launches: the tiny run (``tests/tiny_run.py``) with one thing going wrong in it.

Arguments: run folder, what goes wrong (``poison``, ``hang``, ``stop``, ``slow``), or ``count`` to
count the bytes that a checkpoint moves between the processes (``moved-00000.json``); distributed engine, ZeRO stage.
"""

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch.distributed as dist

from engine.checkpoint.store import CheckpointStore
from engine.errors import one_line_errors
from tests.tiny_run import config_of, run_tiny

POISONED = {(4, 2), (6, 1)}
STALL_TIMEOUT_S = 8.0
SLOW_S = 0.1
"""How much longer the slow process takes for each micro-batch."""


COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all", "all_to_all_single"),
    *("barrier", "broadcast", "broadcast_object_list", "gather", "gather_object", "isend", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "scatter", "scatter_object_list", "send"),
)


@contextlib.contextmanager
def counted(calls):
    """Append the name and the bytes of every collective that any thread begins."""

    def counting(name, collective, *args, **kwargs):
        tensors = [x for x in (*args, *kwargs.values()) if hasattr(x, "element_size")]
        calls.append((name, sum(x.numel() * x.element_size() for x in tensors)))
        return collective(*args, **kwargs)

    kept = {name: getattr(dist, name) for name in COLLECTIVES}
    for name, collective in kept.items():
        setattr(dist, name, functools.partial(counting, name, collective))
    try:
        yield
    finally:
        for name, collective in kept.items():
            setattr(dist, name, collective)


def count(training, folder):
    """Save what is owned, then a whole checkpoint with all checks, then compute a report's averages."""
    engine, moved = training.engine, {}
    store = CheckpointStore(folder / "other", rank=engine.rank, world_size=engine.world_size)
    engine.barrier()
    works = {
        "writing": lambda: store.save(training.step, engine.state_slices(), {}),
        "saving": training.save,
        "averaging": lambda: engine.average({"x": 1.0}),
    }
    for name, work in works.items():
        calls = moved[name] = []
        with counted(calls):
            work()
            store.wait()
            training.store.wait()
    (folder / f"moved-{training.engine.rank:05d}.json").write_text(json.dumps(moved))


@one_line_errors
def main() -> None:
    folder, what, engine, stage = Path(sys.argv[1]), *sys.argv[2:5]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    last = int(os.environ.get("WORLD_SIZE", "1")) - 1

    def before_step(training, step):
        if what == "count" and step == 5:
            count(training, folder)
        if training.engine.rank != last:
            return
        if what == "slow" and step == 0:
            training.engine.module.register_forward_pre_hook(lambda *_: time.sleep(SLOW_S))
        if what == "hang" and step == 3:
            time.sleep(3600)
        if what == "stop" and step == 3:
            os.kill(os.getpid(), signal.SIGSTOP)

    config = config_of(
        folder,
        run={"stall_timeout_s": STALL_TIMEOUT_S},
        distributed={"engine": engine, "zero_stage": int(stage)},
        report={"every_steps": 4},
    )
    run_tiny(config, poisoned=POISONED if what == "poison" else (), before_step=before_step)


if __name__ == "__main__":
    main()
