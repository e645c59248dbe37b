"""Does each fault of the data end as it is promised to? ``python benchmarks/drills/data_faults.py``.

Each drill breaks a data set of generated images in its own way and runs the project's programs on it as a user would,
a training run of a tiny Swin among them. Promised are: a permanently bad image is replaced, named once and counted,
and everything else stays as it is; what cannot be read stops the run with one line that says why, and replaces nothing;
what is hostile runs no code, writes nothing outside and takes no more memory. Every drill has a time limit, and no
process may outlive its program. A table, then one JSON line; exit code 1 where a promise is broken.
"""

import argparse
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.drills.drill import LIMIT_S, NUM_SAMPLES, PER_SHARD, STEPS, Drill, Missed, Trained, expect
from benchmarks.drills.faults import damaged_data, hostile_data, remote_faults
from benchmarks.goals import Goal, finish, machine

DRILLS: tuple[Callable[[Drill], str], ...] = (
    damaged_data.corrupt_pictures,
    damaged_data.image_bombs,
    damaged_data.truncated_tar,
    damaged_data.missing_shard,
    damaged_data.swapped_shard,
    damaged_data.rotten_index,
    remote_faults.flaky_server,
    remote_faults.hanging_server,
    remote_faults.lying_server,
    remote_faults.full_cache_disk,
    hostile_data.climbing_names,
    hostile_data.pipe_url,
    hostile_data.pickle_members,
    hostile_data.hostile_manifests,
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one drill."""

    name: str
    """Of the drill."""
    kept: bool
    """Whether the promises were kept."""
    words: str
    """What happened."""
    seconds: float
    """How long it took."""


def main() -> None:
    """Run the drills and print what came of them."""
    names = {drill.__name__: drill for drill in DRILLS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="DRILL", help=", ".join(names))
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was mounted and started is put away
    folder = Path(tempfile.mkdtemp(prefix="data-faults-"))
    start = time.monotonic()
    try:
        outcomes = run_drills([names[name] for name in options.only], folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(outcomes)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures: dict[str, Any] = {"machine": machine(), "seconds": round(time.monotonic() - start, 1)}
    figures["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    figures["drills"] = {
        outcome.name: {"kept": outcome.kept, "seconds": round(outcome.seconds, 1), "words": outcome.words}
        for outcome in outcomes
    }
    broken = Goal(name="drills with a broken promise", value=sum(not o.kept for o in outcomes), at_most=0)
    slowest = Goal(name="seconds of the longest drill", value=max(o.seconds for o in outcomes), at_most=LIMIT_S)
    finish(figures, [broken, slowest], check=not options.no_goal)


def run_drills(drills: list[Callable[[Drill], str]], *, folder: Path) -> list[Outcome]:
    """Write sound shards, train on them, and run each drill; raises `Missed` where that already fails."""
    sound, reference, reference_mib = _sound(folder)
    outcomes: list[Outcome] = []
    for drill in drills:
        start, name = time.monotonic(), drill.__name__
        place = Drill(folder=folder / name, sound=sound, reference=reference, reference_mib=reference_mib)
        try:
            kept, words = True, drill(place)
        except Exception as error:  # what a program did not leave behind is missed in many ways
            kept, words = False, str(error) if isinstance(error, Missed) else repr(error)
        outcomes.append(Outcome(name=name, kept=kept, words=words, seconds=time.monotonic() - start))
        sys.stdout.write(f"{name}, {outcomes[-1].seconds:.0f} s: {'kept' if kept else 'BROKEN'}, {words}\n")
        sys.stdout.flush()
    return outcomes


def show(outcomes: list[Outcome]) -> None:
    """Print a table for a person."""
    table = Table("drill", "promises", "seconds", "what happened")
    for outcome in outcomes:
        table.add_row(
            outcome.name, "kept" if outcome.kept else "BROKEN", f"{outcome.seconds:.0f}", outcome.words[-300:]
        )
    Console(width=160).print(table)


def _sound(folder: Path) -> tuple[Path, Trained, float]:
    """Write the shards that the drills break; return them, what training on them gives, and its memory in MiB."""
    sound = folder / "sound"
    place = Drill(folder=folder / "reference", sound=sound)
    size = ("--count", str(NUM_SAMPLES), "--size", "64", "--samples-per-shard", str(PER_SHARD))
    place.data("write", "--source", "scenes", *size, "--out", sound, "--processes", "1").expect_sound()
    peak_mib = place.pretrain(sound).expect_sound().peak_mib
    trained = place.trained()
    seen = sorted(int(sample[0]) for sample in trained.places.values())
    expect(seen == list(range(NUM_SAMPLES)) and len(trained.losses) == STEPS, "a sound epoch is no epoch")
    return sound, trained, peak_mib


if __name__ == "__main__":
    main()
