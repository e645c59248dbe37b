"""What a step and a checkpoint cost one process, among 1, 64 and 1024: ``python benchmarks/steps/survival_scaling.py``.

Nothing is trained: each figure is what one process computes, simulated on this one. Every process has four
micro-batches of 64 images in a step, so the global batch grows with the processes. A figure that stays flat is one that
more processes do not make dearer; what process 0 alone does for all of them is given per process.

* order: the samples of a micro-batch;
* plan: its mask and the groups of all layers, for Swin-B;
* recovery: looking up what is left out, with 100 micro-batches left out;
* ownership: which elements of the parameters a process saves (Swin-B's);
* part: a process's part of a checkpoint's index; index: putting all parts together and writing the index (process 0).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from backbones.build import layout_spec
from backbones.visible.layout import build_layout
from benchmarks.goals import Goal, finish, machine
from data.loading.order import Order
from engine.checkpoint.format import DTYPE_NAMES, make_index, write_index
from engine.distributed.sharding import ParamSlice, share_evenly
from engine.faults.non_finite_recovery import NonFiniteRecovery
from pretrain.batches.masking import unit_mask

PROCESSES = (1, 64, 1024)
MICRO_BATCHES, MICRO_BATCH_SIZE, SHARD_SIZE, NUM_SHARDS = 4, 64, 4000, 4000
FLAT = 2.0
"""A figure counts as flat if 1024 processes cost each at most so many times what the cheapest count costs it."""
KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of each figure; the median counts")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    with torch.device("meta"):
        parameters = list(timm.create_model("swin_base_patch4_window7_224").named_parameters())
    spec = layout_spec(timm.create_model("swin_base_patch4_window7_224"))
    figures: dict[str, Any] = {"machine": machine(), "repeats": options.repeats}
    for world_size in PROCESSES:
        works = {
            **step_works(world_size, spec=spec),
            **checkpoint_works(world_size, parameters=parameters),
        }
        times = {name: milliseconds(work, repeats=options.repeats) for name, work in works.items()}
        times["index_ms_per_process"] = times.pop("index_ms") / world_size
        figures[f"processes_{world_size}"] = times
        print(world_size, {name: round(x, 4) for name, x in times.items()}, flush=True)
    finish(figures, goals(figures), check=not options.no_goal)


def goals(figures: dict[str, Any]) -> list[Goal]:
    """List the bounds that the figures must keep: many processes cost each no more than few."""
    columns = [figures[f"processes_{world_size}"] for world_size in PROCESSES]
    return [
        Goal(
            name=f"{name}, 1024 processes over the cheapest",
            value=columns[-1][name] / min(c[name] for c in columns[:2]),
            at_most=FLAT,
        )
        for name in columns[0]
    ]


def step_works(world_size: int, *, spec: Any) -> dict[str, Callable[[], Any]]:
    """Time what the last of so many processes does for one step."""
    batch_size = world_size * MICRO_BATCHES * MICRO_BATCH_SIZE
    order = Order([SHARD_SIZE] * NUM_SHARDS, batch_size=batch_size, micro_batch_size=MICRO_BATCH_SIZE, seed=0)
    mine = range((world_size - 1) * MICRO_BATCHES, world_size * MICRO_BATCHES)
    steps = iter(range(5, 10**6))
    recovery = NonFiniteRecovery(
        engine=cast(Any, None),
        folder=cast(Any, None),
        shard_of=str,
        num_micro_batches=world_size * MICRO_BATCHES,
        max_rewinds=5,
        precision="bf16",
        skipped=frozenset((1000 + number, number % MICRO_BATCHES) for number in range(100)),
    )

    def plan() -> None:
        step = next(steps)
        for number in mine:
            mask = unit_mask(spec.units, mask_ratio=0.75, seed=0, step=step, micro_batch=number)
            build_layout(spec, mask.visible)

    def pick() -> None:
        step = next(steps) % order.steps_per_epoch
        for number in mine:
            order.micro_batch(step, number)

    return {
        "order_ms": pick,
        "plan_ms": plan,
        "recovery_ms": lambda: [recovery.weight((7, number)) for number in mine],
    }


def checkpoint_works(world_size: int, *, parameters: list[tuple[str, nn.Parameter]]) -> dict[str, Callable[[], Any]]:
    """Time what saving costs the last of so many processes, and process 0 for all."""
    owned = [_runs(parameters, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [_part(runs, rank=rank) for rank, runs in enumerate(owned)]

    def index() -> None:
        content = make_index(1, {"step": 1}, [json.loads(text) for text in parts])
        with tempfile.TemporaryDirectory(prefix="survival-scaling-") as name:
            write_index(Path(name), content)

    return {
        "ownership_ms": lambda: _runs(parameters, rank=world_size - 1, world_size=world_size),
        "part_ms": lambda: _part(owned[-1], rank=world_size - 1),
        "index_ms": index,
    }


def milliseconds(work: Callable[[], Any], *, repeats: int) -> float:
    """Time by the processor: the median in milliseconds."""
    work()
    times: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def _runs(parameters: list[tuple[str, nn.Parameter]], *, rank: int, world_size: int) -> list[ParamSlice]:
    return share_evenly(iter(parameters), {}, rank=rank, world_size=world_size)


def _part(runs: list[ParamSlice], *, rank: int) -> str:
    """A process's part of the index, as `write_slices` gives it, without writing the tensors."""
    file = {"name": f"rank-{rank:05d}.safetensors", "size_bytes": 0, "digest": "0" * 64}
    float32 = DTYPE_NAMES[torch.float32]
    slices = [[kind, r.name, list(r.shape), float32, r.offset, r.weight.numel()] for kind in KINDS for r in runs]
    return json.dumps({"file": file, "slices": slices})


if __name__ == "__main__":
    main()
