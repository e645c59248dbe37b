"""`data/main.py bench`: how many images a second one core prepares for pretraining, and where its time goes."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data.commands.config import Bench
from data.commands.console import say, start_console
from data.config import DataConfig, DecodeMode
from data.images.crop_batch import decode_parts, groups, plan_crops, resize_parts
from data.images.decode import BadImage, Header
from data.images.transforms import Crop, random_crop
from data.loading.order import Order
from data.shards.shard_set import Sample, ShardSet, open_shards
from engine.errors import UserError
from engine.randomness import stream
from engine.run.durable import write_durably

MICRO_BATCH_SIZE = 64
STAGES = {
    "read": "from the shard, waiting included",
    "header": "sizes, orientation, and drawing the crop",
    "decode": "JPEG to pixels, down to the crop's last row",
    "resize": "crop, resize, flip",
    "collate": "images to one micro-batch",
}


def run_bench(options: Bench) -> None:
    """Measure, and say it."""
    console = start_console()
    shards = open_shards(options.shards, cache=options.cache)
    figures = measure(
        shards, num_images=options.images, size=options.size, decode=options.decode, max_pixels=options.max_pixels
    )
    figures |= cores_needed(figures, gpu_images_per_s=options.gpu_images_per_s)
    if options.json_out is not None:
        write_durably(options.json_out, json.dumps(figures, indent=1).encode())
    _say(figures, console=console)


def measure(
    shards: ShardSet, *, num_images: int, size: int, decode: DecodeMode, max_pixels: int = DataConfig.max_pixels
) -> dict[str, Any]:
    """Measure images a second on one core and milliseconds an image by stage, with both ways of decoding.

    Reading is measured by the clock, everything else by the process's CPU time, so other programs disturb it little.
    """
    other: DecodeMode = "scaled" if decode == "exact" else "exact"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as loader workers do
    try:
        # Both ways take each micro-batch in turn, so that a slow moment of the machine hits both.
        modes = {mode: _Stages(size=size, decode=mode, max_pixels=max_pixels) for mode in (decode, other)}
        for number, samples in enumerate(_micro_batches(shards, num_images=num_images, read=modes[decode])):
            for stages in modes.values():
                stages.build(samples, step=number)
    finally:
        torch.set_num_threads(threads)
    stages = modes[decode]
    if not stages.images:
        raise UserError(f"none of {stages.bad} images decodes; run `python data/main.py verify`")
    total = stages.images + stages.bad
    modes[other].seconds["read"] = stages.seconds["read"]
    return {
        "images": stages.images,
        "bad_images": stages.bad,
        "size_px": size,
        "decode": decode,
        "mean_image_kib": stages.image_bytes / total / 1024,
        "mean_image_megapixels": stages.pixels / total / 1e6,
        "images_per_s_per_core": stages.images_per_s,
        f"images_per_s_per_core_{other}": modes[other].images_per_s,
        "ms_per_image": {stage: 1e3 * stages.seconds[stage] / stages.images for stage in STAGES},
    }


def cores_needed(figures: dict[str, Any], *, gpu_images_per_s: float | None) -> dict[str, Any]:
    """How many cores prepare what one GPU consumes."""
    if gpu_images_per_s is None:
        return {}
    cores = math.ceil(gpu_images_per_s / figures["images_per_s_per_core"])
    return {"gpu_images_per_s": gpu_images_per_s, "cores_needed": cores}


class _Stages:
    """What a builder does with a micro-batch, with a clock for each part."""

    def __init__(self, *, size: int, decode: DecodeMode, max_pixels: int) -> None:
        self._size, self._max_pixels = (size, size), max_pixels
        self._decode: DecodeMode = decode
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.images = self.image_bytes = self.pixels = self.bad = 0

    @property
    def images_per_s(self) -> float:
        """Images a second, all stages together."""
        return self.images / sum(self.seconds.values())

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Count what happens inside to a stage."""
        now = time.perf_counter if stage == "read" else time.process_time
        start = now()
        yield
        self.seconds[stage] += now() - start

    def build(self, samples: list[Sample], *, step: int) -> None:
        """Make one micro-batch, as builders do."""

        def draw(sample: Sample, header: Header) -> Crop:
            return random_crop(header.height, header.width, rng=stream(0, "crop", step, 0, sample.id, sample.repeat))

        with self.clock("header"):
            plans = plan_crops(samples, draw, max_pixels=self._max_pixels)
        images: list[np.ndarray] = []
        for group in groups(plans):
            with self.clock("decode"):
                parts = decode_parts(group, size=self._size, decode=self._decode)
            with self.clock("resize"):
                results = resize_parts(parts, size=self._size)
            images += [result[0] for result in results if not isinstance(result, BadImage)]
        if images:
            with self.clock("collate"):
                np.stack(images)
        headers = [plan.header for plan in plans if not isinstance(plan, BadImage)]
        self.images += len(images)
        self.bad += len(samples) - len(images)
        self.image_bytes += sum(len(sample.image) for sample in samples)
        self.pixels += sum(header.height * header.width for header in headers)


def _micro_batches(shards: ShardSet, *, num_images: int, read: _Stages) -> Iterator[list[Sample]]:
    """Yield samples in training order, after one micro-batch that is not counted."""
    size = min(MICRO_BATCH_SIZE, shards.num_samples, num_images)
    order = Order(shards.sizes, batch_size=size, micro_batch_size=size, seed=0)
    _Stages(size=32, decode="exact", max_pixels=DataConfig.max_pixels).build(
        shards.read_many(order.micro_batch(0, 0).tolist()), step=0
    )
    for step in range(math.ceil(num_images / size)):
        with read.clock("read"):
            samples = shards.read_many(order.micro_batch(step, 0).tolist())
        yield samples


def _say(figures: dict[str, Any], *, console: Console) -> None:
    table = Table("stage", "ms an image", "share", "what")
    total = sum(figures["ms_per_image"].values())
    for stage, ms in figures["ms_per_image"].items():
        table.add_row(stage, f"{ms:.3f}", f"{ms / total:.0%}", STAGES[stage])
    table.add_row("all", f"{total:.3f}", "100%", "")
    console.print(table)
    other = "scaled" if figures["decode"] == "exact" else "exact"
    lines = [
        f"{figures['images_per_s_per_core']:.0f} images/s per core to {figures['size_px']} px with data.decode "
        f"{figures['decode']}; {figures[f'images_per_s_per_core_{other}']:.0f} with {other}",
        f"{figures['images']} images of {figures['mean_image_megapixels']:.2f} megapixels and "
        f"{figures['mean_image_kib']:.0f} KiB on average, {figures['bad_images']} that do not decode",
    ]
    if "cores_needed" in figures:
        lines.append(
            f"a GPU at {figures['gpu_images_per_s']:.0f} images/s needs {figures['cores_needed']} cores "
            f"(data.workers, over all its processes)"
        )
    for line in lines:
        say(console, line)
