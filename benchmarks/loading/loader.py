"""How fast is pretraining's input on one core, against others'? ``python benchmarks/loading/loader.py --data FOLDER``.

Input: random resized crops of 224 px (scale 0.2 to 1) and flips, as uint8 micro-batches of 64. FOLDER holds
`coco_instances` (640x480, 150 KiB each) and `imagenet_samples_1k` (shorter side 256). Measured:

* **speed**: whole passes in this process on one thread, CPU time, all sides in turn, several rounds; ratios are medians
  over the rounds. Both sides resize alike: bicubic, and bilinear for the other ratio. Rivals: torchvision's ImageFolder
  over PIL in a DataLoader (`normalised`: with the float normalisation of its examples, which we leave to the device),
  webdataset over PIL, and litdata where it is installed;
* **decoder**: simplejpeg alone on whole images, and at half their size: the limit that cropping cannot pass by much;
* **stages**: where our time goes;
* **workers**: one and two loader workers by the clock, from the first batches on; needs two idle cores;
* **restart**: seconds to the first micro-batch after a restart at any step of 10^8 samples.
"""

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import simplejpeg
import torch

from benchmarks.goals import Goal, finish, machine
from benchmarks.loading.loader_restart import restarts, write_links
from benchmarks.loading.loader_sides import (
    BATCH,
    SIZE,
    ImageFiles,
    Side,
    litdata_stream,
    ours,
    prepare,
    torchvision_folder,
    webdataset_tars,
)
from data.commands.bench import measure
from data.images.decode import read_header
from data.shards.shard_set import open_shards
from engine.errors import UserError

SETS = {"coco": ("coco_instances", 2.0), "small": ("imagenet_samples_1k", 1.3)}
PARTS = ("speed", "decoder", "stages", "workers", "restart")
WORKERS_GOAL, RESTART_GOAL_S = 1.8, 2.0
EPOCHS_BY_WORKERS = 18
FIRST_BATCHES = 6  # until the workers' head start is used up


def main() -> None:
    """Measure, and print the figures."""
    options = _options()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"machine": machine() | _versions(), "load": os.getloadavg()[0], "count": options.count}
    figures["parts_not_run"] = [part for part in PARTS if part not in options.parts]
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: _files(options.data / folder / "images") for name, (folder, _) in SETS.items()}
        for name, (_, goal) in SETS.items():
            images = prepare(files[name][: options.count], out=Path(scratch) / name, count=options.count)
            figures[name] = _measure(images, options=options)
            goals += _speed_goals(name, figures[name], goal=goal)
        if "restart" in options.parts:
            write_links(Path(scratch), image=files["small"][0].read_bytes())
            figures["restart_s"] = restarts(Path(scratch))
            slowest = max(figures["restart_s"].values())
            goals.append(Goal(name="seconds to the first batch", value=slowest, at_most=RESTART_GOAL_S))
    finish(figures, goals, check=not options.no_goal)


def _files(folder: Path) -> list[Path]:
    paths = sorted(folder.rglob("*.jpg"))
    if not paths:
        raise UserError(f"expected images in {folder}; say with --data where the data sets lie")
    return paths


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the two sets")
    parser.add_argument("--count", type=int, default=400, help="images of a pass; the sets are repeated to it")
    parser.add_argument("--rounds", type=int, default=5, help="passes of every side, after one for warm-up")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


def _measure(images: ImageFiles, *, options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "speed" in options.parts:
        figures |= speed(images, rounds=options.rounds)
    if "decoder" in options.parts:
        figures["decoder_images_per_s"] = decoder_limit(images, rounds=options.rounds)
    if "stages" in options.parts:
        stages = measure(open_shards(images.shards), num_images=options.count, size=SIZE, decode="exact")
        figures["stages"] = {"images_per_s": stages["images_per_s_per_core"], "ms_per_image": stages["ms_per_image"]}
    if "workers" in options.parts:
        figures["by_workers_images_per_s"] = by_workers(images, rounds=options.rounds)
    return figures


def speed(images: ImageFiles, *, rounds: int) -> dict[str, Any]:
    """Measure images per CPU second of every side, and how many times faster ours is."""
    sides: dict[str, Side | None] = {
        "ours exact": ours(images, decode="exact", interpolation="bicubic"),
        "torchvision": torchvision_folder(images, interpolation="bicubic"),
        "webdataset": webdataset_tars(images, interpolation="bicubic"),
        "ours scaled": ours(images, decode="scaled", interpolation="bicubic"),
        "torchvision normalised": torchvision_folder(images, interpolation="bicubic", normalised=True),
        "litdata": litdata_stream(images, interpolation="bicubic"),
        "ours bilinear": ours(images, decode="exact", interpolation="bilinear"),
        "torchvision bilinear": torchvision_folder(images, interpolation="bilinear"),
        "webdataset bilinear": webdataset_tars(images, interpolation="bilinear"),
    }
    times = _in_turn({name: (lambda s=side: s(0)) for name, side in sides.items() if side is not None}, rounds=rounds)
    ratios = {
        name: median(
            other / own
            for other, own in zip(
                times[name], times["ours bilinear" if "bilinear" in name else "ours exact"], strict=True
            )
        )
        for name in times
    }
    return {
        "images_per_cpu_s": {name: 1 / median(values) for name, values in times.items()},
        "times_as_long_as_ours": ratios,
        "skipped": [f"{name}: not installed" for name, side in sides.items() if side is None],
    }


def _in_turn(passes: dict[str, Callable[[], Iterator[Any]]], *, rounds: int) -> dict[str, list[float]]:
    """Time each pass in CPU seconds an image, by round."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, start_pass in passes.items():
            gc.collect()
            start = time.process_time()
            images = sum(len(batch) for batch in start_pass())
            if number:
                times[name].append((time.process_time() - start) / images)
    return times


def decoder_limit(images: ImageFiles, *, rounds: int) -> dict[str, float]:
    """Measure images per CPU second of the JPEG decoder alone."""
    encoded = [path.read_bytes() for path in sorted(images.folder.rglob("*.jpg"))]
    headers = [read_header(data) for data in encoded]

    def whole() -> Iterator[Any]:
        return (simplejpeg.decode_jpeg(data)[:1] for data in encoded)

    def halved() -> Iterator[Any]:
        halves = [(-(-header.height // 2), -(-header.width // 2)) for header in headers]
        return (
            simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=2)[:1]
            for data, (height, width) in zip(encoded, halves, strict=True)
        )

    passes: dict[str, Callable[[], Iterator[Any]]] = {"whole": whole, "halved": halved}
    return {name: 1 / median(values) for name, values in _in_turn(passes, rounds=rounds).items()}


def by_workers(images: ImageFiles, *, rounds: int) -> dict[str, float]:
    """Measure our images a second by the clock with one worker and with two: the best of the rounds."""
    side = ours(images, decode="exact", interpolation="bicubic", epochs=EPOCHS_BY_WORKERS)
    rates = {workers: [] for workers in (1, 2)}
    for _ in range(rounds):
        for workers in rates:
            rates[workers].append(_clocked(side(workers)))
    one, two = max(rates[1]), max(rates[2])
    return {"one": one, "two": two, "ratio": two / one}


def _clocked(batches: Iterator[Any]) -> float:
    """Measure images a second from the first batches on."""
    for _ in islice(batches, FIRST_BATCHES):
        pass
    start = time.perf_counter()
    count = sum(len(batch) for batch in batches)
    return count / (time.perf_counter() - start)


def _speed_goals(name: str, figures: dict[str, Any], *, goal: float) -> list[Goal]:
    goals: list[Goal] = []
    ratios = figures.get("times_as_long_as_ours", {})
    for rival in ("torchvision", "webdataset", "torchvision bilinear", "webdataset bilinear"):
        if rival in ratios:
            goals.append(Goal(name=f"ours over {rival}, {name}", value=ratios[rival], at_least=goal))
    if "by_workers_images_per_s" in figures:
        ratio = figures["by_workers_images_per_s"]["ratio"]
        goals.append(Goal(name=f"two workers over one, {name}", value=ratio, at_least=WORKERS_GOAL))
    return goals


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torchvision", "pillow", "simplejpeg", "webdataset")} | {
        "micro_batch": str(BATCH)
    }


if __name__ == "__main__":
    main()
