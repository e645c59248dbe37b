"""What a checkpoint costs a run: ``python benchmarks/steps/checkpoint_cost.py``.

The whole training state (fp32 weights, both moments, averaged weights) of GreenMIM with Swin-B and Swin-L, written to a
disk by one process, that is 1.5 and 3.2 GB; then the share that one of 64 processes owns of 1e9 parameters.

* waiting: seconds until ``save`` returns and training goes on, while the write runs in the background, against seconds
  until the checkpoint is complete, which is what a save without a background would cost; the median save counts, and
  the first, which makes the memory for the copies, is given beside it;
* loading: opening with all digests checked, and reading every tensor;
* memory: the most that a process holds beyond its state while it saves.
"""

import argparse
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.goals import Goal, finish, machine
from engine.checkpoint.slices import Kind, TensorSlice
from engine.checkpoint.store import CheckpointStore, open_checkpoint
from engine.recipe import parse
from engine.run.folder import step_folder
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import build_model

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"swin_base": "Swin-B", "swin_large": "Swin-L"}
KINDS: tuple[Kind, ...] = ("weight", "exp_avg", "exp_avg_sq", "ema")
SIMULATED_PARAMETERS, SIMULATED_PROCESSES = 10**9, 64
WAIT_SHARE = 0.10
MEMORY_SHARE = 1.1
POLL_S = 0.005


def main() -> None:
    """Measure each size in a process of its own and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="saves of each size")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="recipes to measure")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder by default")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-cost-", dir=options.folder))
    figures: dict[str, Any] = {"machine": machine(), "repeats": options.repeats}
    try:
        for name in options.sizes:
            figures[name] = _in_a_process(measure_recipe, folder, name, options.repeats)
        figures["simulated_1b"] = _in_a_process(measure_share, folder, options.repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish(figures, goals(figures, options.sizes), check=not options.no_goal)


def goals(figures: dict[str, Any], sizes: list[str]) -> list[Goal]:
    """List the bounds that the figures must keep."""
    bounds = [
        Goal(name=f"{SIZES[name]}: waiting over writing", value=figures[name]["wait_share"], at_most=WAIT_SHARE)
        for name in sizes
    ]
    share = figures["simulated_1b"]["extra_memory_over_owned"]
    return [
        *bounds,
        Goal(name="1B parameters: extra memory over what the process owns", value=share, at_most=MEMORY_SHARE),
    ]


def measure_recipe(folder: Path, name: str, repeats: int) -> dict[str, Any]:
    """Save and load the training state of a recipe's network."""
    config = parse(
        PretrainConfig, ["--recipe", str(ROOT / "pretrain/recipes" / f"{name}.yaml"), "--data.shards", "none"]
    )
    shapes = {n: tuple(p.shape) for n, p in build_model(config).named_parameters()}
    return {"network": SIZES[name], **measure(folder / name, shapes, repeats=repeats)}


def measure_share(folder: Path, repeats: int) -> dict[str, Any]:
    """Save and load what one of many processes owns of a large network, in tensors as large as a wide layer's."""
    owned = SIMULATED_PARAMETERS // SIMULATED_PROCESSES
    rows = 4 * 2048
    shapes = {f"layer-{number}": (rows, 2048) for number in range(owned // (rows * 2048) or 1)}
    sizes = {"parameters_in_all": SIMULATED_PARAMETERS, "processes": SIMULATED_PROCESSES}
    return {**sizes, **measure(folder / "share", shapes, repeats=repeats)}


def measure(folder: Path, shapes: dict[str, tuple[int, ...]], *, repeats: int) -> dict[str, Any]:
    """Save a state of these shapes so often, in the background, then load it."""
    slices = [_slice(kind, name, shape) for kind in KINDS for name, shape in shapes.items()]
    size_bytes = sum(s.values.numel() * s.values.element_size() for s in slices)
    store = CheckpointStore(folder, keep_last=1)
    waits: list[float] = []
    writes: list[float] = []
    with _Peak() as peak:
        for step in range(1, repeats + 1):
            start = time.perf_counter()
            store.save(step, slices, {"step": step})
            waits.append(time.perf_counter() - start)
            store.wait()
            writes.append(time.perf_counter() - start)
    load_s = _seconds(lambda: _load(step_folder(folder, repeats), shapes))
    shutil.rmtree(folder)
    return {
        "parameters": sum(s.values.numel() for s in slices) // len(KINDS),
        "size_bytes": size_bytes,
        "wait_s": statistics.median(waits),
        "write_s": statistics.median(writes),
        "wait_share": statistics.median(wait / write for wait, write in zip(waits, writes, strict=True)),
        "first_wait_share": waits[0] / writes[0],
        "wait_s_each": waits,
        "write_s_each": writes,
        "load_s": load_s,
        "extra_memory_bytes": peak.extra_bytes,
        "extra_memory_over_owned": peak.extra_bytes / size_bytes,
    }


def _slice(kind: Kind, name: str, shape: tuple[int, ...]) -> TensorSlice:
    whole = torch.empty(shape).uniform_(-1, 1).flatten()
    return TensorSlice(kind=kind, name=name, shape=shape, offset=0, values=whole)


def _load(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    checkpoint = open_checkpoint(path)
    for kind in KINDS:
        for name in shapes:
            checkpoint.read(kind, name)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class _Peak:
    """The most resident memory within it, beyond what there was before."""

    def __enter__(self) -> "_Peak":
        self.extra_bytes = 0
        self._process, self._ended = psutil.Process(), threading.Event()
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(POLL_S):
            self.extra_bytes = max(self.extra_bytes, self._process.memory_info().rss - self._before)


def _in_a_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Do ``work`` in a fresh process, whose memory nothing else has touched."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(work, arguments)
    sys.stdout.write(f"{work.__name__} {arguments[1:]}: {result}\n")
    return result


if __name__ == "__main__":
    main()
