"""Is XFormer's attention linear in tokens, and what is that worth? ``python benchmarks/steps/xformer.py``.

Inference of one image at 256, 512 and 1024 px, fp32, one thread: XFormer (the reconstruction), the same network with
softmax attention, and timm's MobileViT-S. Softmax attention runs fused (no matrix of scores is kept) and explicitly (it
is, as in the code of the time). All are timed in turn in one process, by its CPU time. Memory is the peak of a fresh
process above what it held before the forward. The article says of 1024 px: about 2 times MobileViT's speed, 32 % less
memory.
"""

import argparse
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import backbones  # noqa: F401  # registers XFormer
from backbones.weights.model_size import measure
from benchmarks.goals import Goal, finish, machine

NETWORKS = {  # name: (timm name, arguments, how attention is computed)
    "xformer": ("xformer", {}, SDPBackend.FLASH_ATTENTION),
    "xformer, softmax fused": ("xformer", {"attention": "softmax"}, SDPBackend.FLASH_ATTENTION),
    "xformer, softmax explicit": ("xformer", {"attention": "softmax"}, SDPBackend.MATH),
    "mobilevit_s, fused": ("mobilevit_s", {}, SDPBackend.FLASH_ATTENTION),
    "mobilevit_s, explicit": ("mobilevit_s", {}, SDPBackend.MATH),
}
SIZES: tuple[int, ...] = (256, 512, 1024)
PUBLISHED = {"mobilevit_over_xformer_time_at_1024": 2.0, "xformer_over_mobilevit_memory_at_1024": 0.68}
SMALL_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc gives freed memory back, so that the peak is what was in use."""


def main() -> None:
    """Measure all networks and print the figures."""
    options = _options()
    torch.set_num_threads(1)
    seconds = {name: dict.fromkeys(SIZES, 0.0) for name in NETWORKS}
    for size in SIZES:
        for name, value in time_all(size, rounds=options.rounds).items():
            seconds[name][size] = value
    peaks = {name: {size: peak_bytes(name, size) for size in SIZES} for name in NETWORKS}
    macs = {name: {size: macs_of(name, size) for size in SIZES} for name in NETWORKS}
    Console(width=150).print(_table(seconds, peaks, macs))
    explicit = "mobilevit_s, explicit"
    goals = [
        Goal(name="XFormer's products at 1024 over 512 px", value=_growth(macs["xformer"]), at_most=4.0),
        Goal(name="XFormer's memory at 1024 over 512 px", value=_growth(peaks["xformer"]), at_most=4.2),
        Goal(name=f"time of {explicit} over XFormer's at 1024 px", value=_at_1024(seconds, explicit), at_least=2.0),
        Goal(name=f"XFormer's memory over {explicit}'s at 1024 px", value=1 / _at_1024(peaks, explicit), at_most=0.68),
    ]
    figures: dict[str, Any] = {"machine": machine(), "seconds": seconds, "peak_bytes": peaks, "macs": macs}
    finish({**figures, **_ratios(seconds, peaks), "published": PUBLISHED}, goals, check=not options.no_goal)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="timed forwards per network and size, after one for warm-up"
    )
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


def build(name: str) -> nn.Module:
    """Build the network, ready for inference."""
    architecture, args, _ = NETWORKS[name]
    return timm.create_model(architecture, **args).eval()


@contextmanager
def inference(name: str) -> Iterator[None]:
    """Compute attention in the network's way, and keep nothing for a backward pass."""
    with torch.inference_mode(), sdpa_kernel(NETWORKS[name][2]):
        yield


def time_all(size: int, *, rounds: int) -> dict[str, float]:
    """Time a forward of each network in turn: median CPU seconds."""
    models = {name: build(name) for name in NETWORKS}
    image = torch.randn(1, 3, size, size)
    times: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for number in range(rounds + 1):
        for name, model in models.items():
            start = time.process_time()
            with inference(name):
                model(image)
            if number:
                times[name].append(time.process_time() - start)
    return {name: median(values) for name, values in times.items()}


def peak_bytes(name: str, size: int) -> int:
    """Measure the memory that a forward takes on top of the network and the image, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    environment = dict(os.environ)
    os.environ.update(SMALL_BLOCKS)
    try:
        process = context.Process(target=_measure_peak, args=(name, size, send))
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    send.close()
    peak = receive.recv()
    process.join()
    return peak


def _measure_peak(name: str, size: int, send: Any) -> None:
    torch.set_num_threads(1)
    model, image = build(name), torch.randn(1, 3, size, size)
    with inference(name):
        model(torch.randn(1, 3, 64, 64))  # what is set up once
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        model(image)
    send.send(_status("VmHWM") - before)


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def macs_of(name: str, size: int) -> int:
    """Count the multiply-accumulates of a forward."""
    architecture, args, _ = NETWORKS[name]
    return measure(architecture, img_size=(size, size), **args).macs


def _growth(by_size: dict[int, Any]) -> float:
    return by_size[1024] / by_size[512]


def _at_1024(figures: dict[str, dict[int, Any]], name: str) -> float:
    return figures[name][1024] / figures["xformer"][1024]


def _ratios(seconds: dict[str, Any], peaks: dict[str, Any]) -> dict[str, Any]:
    others = [name for name in NETWORKS if name != "xformer"]
    return {
        "time_over_xformer": {n: {s: seconds[n][s] / seconds["xformer"][s] for s in SIZES} for n in others},
        "xformer_memory_over": {n: {s: peaks["xformer"][s] / peaks[n][s] for s in SIZES} for n in others},
    }


def _table(seconds: dict[str, Any], peaks: dict[str, Any], macs: dict[str, Any]) -> Table:
    columns = [f"{what} at {size}" for what in ("GMACs", "ms", "MiB") for size in SIZES]
    table = Table("network", *columns, title="inference of one image, fp32, one thread")
    for name in NETWORKS:
        table.add_row(
            name,
            *(f"{macs[name][size] / 1e9:.1f}" for size in SIZES),
            *(f"{1000 * seconds[name][size]:.0f}" for size in SIZES),
            *(f"{peaks[name][size] / 2**20:.0f}" for size in SIZES),
        )
    return table


if __name__ == "__main__":
    main()
