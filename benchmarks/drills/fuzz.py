"""Do damaged images, indexes and manifests end in a message, in bounded memory? Thousands of them, from one seed.

    python benchmarks/drills/fuzz.py [--images 6000] [--files 500] [--seed 0]

Images of every format are mutated and decoded as training and `verify` do it; indexes and manifests are mutated, and
their shards opened, read and verified. A process of its own does it: where it dies, another goes on behind the case
that it died of. Prints a line for each case that went wrong and, last, one line of JSON; exit code 1 where one did.
"""

import argparse
import json
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drills.faults.mutations import image_bases, largest_images, mutated_files, mutated_image, sound_shards
from data.commands.verify import verify
from data.images.decode import BYTES_PER_PIXEL, BadImage, decode_part, decode_rgb, read_header
from data.images.transforms import resize_center_crop
from data.shards.shard_set import open_shards
from engine.errors import UserError
from engine.randomness import stream

MAX_PIXELS = 4_000_000
CASE_LIMIT_S = 30
SLACK_BYTES = 2**25
"""Memory that does not go by pixels: tables of decoders, what the allocator keeps."""


@dataclass(kw_only=True)
class Tally:
    """What became of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    peak_bytes: int = 0
    """Most memory that a process took above what it held before the first case."""


def main() -> None:
    """Try all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000, help="mutated images")
    parser.add_argument("--files", type=int, default=500, help="mutated index and manifest files")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    options = parser.parse_args()
    start = time.monotonic()
    images, files = Tally(), Tally()
    tried(decode_images, options.images, seed=options.seed, tally=images)
    tried(open_files, options.files, seed=options.seed, tally=files)
    limit_bytes = BYTES_PER_PIXEL * MAX_PIXELS + SLACK_BYTES
    if images.peak_bytes > limit_bytes:
        images.wrong.append(f"images took {images.peak_bytes} bytes, at most {limit_bytes} are promised")
    for line in (*images.wrong, *files.wrong):
        sys.stdout.write(f"WRONG {line}\n")
    result = {
        "images": options.images,
        "files": options.files,
        "wrong": len(images.wrong) + len(files.wrong),
        "image_outcomes": dict(images.outcomes),
        "file_outcomes": dict(files.outcomes),
        "max_pixels": MAX_PIXELS,
        "bytes_per_pixel": round(images.peak_bytes / MAX_PIXELS, 1),
        "bytes_per_pixel_promised": BYTES_PER_PIXEL,
        "file_peak_mib": round(files.peak_bytes / 2**20),
        "seconds": round(time.monotonic() - start),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    sys.exit(1 if result["wrong"] else 0)


Cases = Callable[[int, int, int, Path], Iterator[str]]
"""Yields the outcome of each case from (seed, first, count, an empty folder); raises what should not be raised."""


def tried(cases: Cases, count: int, *, seed: int, tally: Tally) -> None:
    """Run cases in processes of their own, the next one behind a case that a process died of."""
    first = 0
    while first < count:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            process = multiprocessing.Process(target=_run, args=(cases, seed, first, count, Path(folder), sender))
            process.start()
            sender.close()
            first = _collect(receiver, first=first, tally=tally)
            process.join()
        if first < count:  # the process ended early
            tally.wrong.append(f"{cases.__name__} {first}: the process died with {process.exitcode}")
            tally.outcomes["died"] += 1
            first += 1


def _collect(receiver: Any, *, first: int, tally: Tally) -> int:
    """Take a process's outcomes up to its end; return the number of the case that comes next."""
    while True:
        try:
            outcome, wrong, peak_bytes = receiver.recv()
        except EOFError:
            return first
        first += 1
        tally.outcomes[outcome] += 1
        tally.wrong += [wrong] if wrong else []
        tally.peak_bytes = max(tally.peak_bytes, peak_bytes)


def _run(cases: Cases, seed: int, first: int, count: int, folder: Path, sender: Any) -> None:
    signal.signal(signal.SIGALRM, _too_long)
    number, before = first, 0
    while number < count:
        outcomes = cases(seed, number, count, folder)
        before = before or _memory_bytes("VmRSS")
        try:
            while True:
                signal.alarm(CASE_LIMIT_S)
                outcome = next(outcomes)
                sender.send((outcome, None, _memory_bytes("VmHWM") - before))
                number += 1
        except StopIteration:
            return
        except Exception:
            error = traceback.format_exc().strip().splitlines()
            sender.send(("traceback", f"{cases.__name__} {number}: {error[-3].strip()} {error[-1]}", 0))
            number += 1


def _too_long(_signal: int, _frame: Any) -> None:
    raise TimeoutError(f"a case took more than {CASE_LIMIT_S} s")


def _memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def decode_images(seed: int, first: int, count: int, _folder: Path) -> Iterator[str]:
    """Decode sound images of the most pixels allowed, one of each kind, and then mutated small ones."""
    bases = image_bases()
    with multiprocessing.Pool(1) as pool:  # what encoding takes is not to be measured
        whole = list(pool.apply(largest_images, (MAX_PIXELS,)).values()) if first < len(bases) else []

    def case(number: int) -> str:
        rng = stream(seed, "fuzz image", number)
        return _decoded(whole[number] if number < len(whole) else mutated_image(bases, rng=rng), rng=rng)

    return map(case, range(first, count))


def _decoded(data: bytes, *, rng: np.random.Generator) -> str:
    """Decode an image whole, in part and into a crop; the three must agree about whether it decodes at all."""
    try:
        header = read_header(data, max_pixels=MAX_PIXELS)
        pixels = decode_rgb(data, header=header)
    except BadImage:
        return "bad"
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.shape == (header.height, header.width, 3), (pixels.shape, header)
    del pixels
    bottom = int(rng.integers(1, header.height + 1))
    part, shrink = decode_part(data, header=header, bottom=bottom)
    assert shrink == 1
    assert part.shape[0] >= bottom
    del part
    crop = resize_center_crop(data, size=(32, 32), max_pixels=MAX_PIXELS)
    assert crop.shape == (3, 32, 32), crop.shape
    return header.format


def open_files(seed: int, first: int, count: int, folder: Path) -> Iterator[str]:
    """Open, read and verify shards with a mutated manifest or index."""
    sound = sound_shards(folder / f"sound from {first}")

    def case(number: int) -> str:
        shards = mutated_files(sound, folder / str(number), rng=stream(seed, "fuzz file", number))
        outcome = _read(shards)
        shutil.rmtree(shards)
        return outcome

    return map(case, range(first, count))


def _read(folder: Path) -> str:
    outcome = "read"
    try:
        shards = open_shards(folder)
        rows = [(shard, position, 0) for shard, size in enumerate(shards.sizes[:8]) for position in range(min(size, 8))]
        shards.read_many(rows, extensions=("json", "seg.png"))
        shards.labels()
        shards.close()
    except (UserError, OSError):
        outcome = "refused"
    try:
        findings = verify(folder, num_decoded=None, digests=False)
    except UserError:
        return outcome
    return outcome if findings.passed else "found by verify" if outcome == "read" else outcome


if __name__ == "__main__":
    main()
