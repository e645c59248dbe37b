"""A run that is killed again and again ends as one left alone: ``python benchmarks/drills/kills.py --kills 50``.

The real program under ``accelerate launch`` with DeepSpeed on two CPU processes, a Swin of width 16 (``resume.yaml``):

* kills: SIGKILL of a process chosen at random (launcher, training process, loader worker), at a random moment, a third
  of them while a checkpoint is being written. The others must end by themselves; then the same command goes on;
* full disk: the run folder lies on a small file system (tmpfs; where mounting is not permitted, files are limited with
  RLIMIT_FSIZE) that fills up; each time the run must say so and keep its last checkpoint;
* slow disk: kills as above with every fsync delayed (``benchmarks/drills/slow_disk.py``).

In each case no sample may be lost or repeated, and every tensor of the last checkpoint must be bit-identical to the
undisturbed run's.
"""

import argparse
import collections
import contextlib
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.goals import Goal, finish, machine
from pretrain.verify_resume.launched_run import (
    PROGRAM,
    LaunchedRun,
    ProcessLayout,
    RunFailedError,
    final_tensors,
    noted_micro_batches,
)

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ProcessLayout(processes=2, engine="deepspeed", zero_stage=1, workers=1)
SAVE_EVERY = 2
STEPS_PER_KILL = 12
END_WITHIN_S, TIME_LIMIT_S = 240.0, 600.0
DISK_MIB = 40
LIMITED_BYTES = 1 << 18
WHOLE_LOG = 10**6
NO_SPACE = ("No space left on device", "File too large")


def main() -> None:
    """Run the drills and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="in the main drill; 0 leaves it out")
    parser.add_argument("--fills", type=int, default=3, help="times that the disk is full; 0 leaves the drill out")
    parser.add_argument("--slow-kills", type=int, default=5, help="on the slow disk; 0 leaves the drill out")
    parser.add_argument(
        "--minutes", type=float, default=600.0, help="stop killing after so long, and say how often it was"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the kills; random if not given")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    start = time.monotonic()
    try:
        drills = Drills(folder, rng=random.Random(seed), deadline=start + 60 * options.minutes)
        figures: dict[str, Any] = {"machine": machine(), "layout": str(LAYOUT), "seed": seed}
        if options.kills:
            figures["kills"] = drills.kills("killed", num_kills=options.kills)
            say(f"kills: {figures['kills']}")
        if options.fills:
            figures["full_disk"] = drills.full_disk(num_fills=options.fills)
            say(f"full disk: {figures['full_disk']}")
        if options.slow_kills:
            slow = ROOT / "benchmarks" / "drills" / "slow_disk.py"
            figures["slow_disk"] = drills.kills("slow", num_kills=options.slow_kills, program=slow)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures["seconds"] = round(time.monotonic() - start)
    finish(figures, goals(figures), check=not options.no_goal)


def goals(figures: dict[str, Any]) -> list[Goal]:
    """List the bounds that the figures must keep."""
    bounds: list[Goal] = []
    if "kills" in figures:
        bounds.append(Goal(name="kills", value=figures["kills"]["kills"], at_least=figures["kills"]["kills_asked"]))
    for name in ("kills", "full_disk", "slow_disk"):
        if name in figures:
            drill, title = figures[name], name.replace("_", " ")
            bounds.append(
                Goal(name=f"{title}: micro-batches lost or made of other samples", value=drill["lost"], at_most=0)
            )
            bounds.append(Goal(name=f"{title}: tensors that differ", value=drill["tensors_differing"], at_most=0))
    if "full_disk" in figures:
        drill = figures["full_disk"]
        bounds.append(
            Goal(name="full disk: ends that say what to do", value=drill["said_what_to_do"], at_least=drill["fills"])
        )
    return bounds


@dataclass(frozen=True, kw_only=True)
class Killed:
    """One kill."""

    kind: str
    """Which process it was."""
    seconds: float
    """From the kill until nothing of the run was left."""
    step: int
    """The last step that process 0 had noted."""


class Drills:
    """Runs in one folder, compared with undisturbed ones of the same length."""

    def __init__(self, folder: Path, *, rng: random.Random, deadline: float) -> None:
        self._folder, self._rng, self._deadline = folder, rng, deadline
        options = ["write", "--source", "scenes", "--count", "200", "--size", "64", "--out", str(folder / "shards")]
        subprocess.run([sys.executable, "data/main.py", *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def kills(self, name: str, *, num_kills: int, program: Path = PROGRAM) -> dict[str, Any]:
        """Kill a run so often, then let it end."""
        steps = STEPS_PER_KILL * num_kills
        whole = self._whole(steps)
        killed: list[tuple[Killed, bool]] = []
        while len(killed) < num_kills and time.monotonic() < self._deadline:
            running = self._start(self._folder / name, steps=steps, program=program)
            kill = self._kill(running)
            if kill is None:  # it came to its end first
                break
            killed.append(kill)
            say(f"{name}: kill {len(killed)} of {num_kills}, {kill[0]}{', while saving' if kill[1] else ''}")
        self._start(self._folder / name, steps=steps, program=program).wait_done()
        return {
            "kills": len(killed),
            "kills_asked": num_kills,
            "steps": steps,
            "killed": dict(collections.Counter(kill.kind for kill, _ in killed)),
            "while_saving": sum(saving for _, saving in killed),
            "others_gone_s_max": round(max((kill.seconds for kill, _ in killed), default=0.0), 1),
            **self._compare(whole, self._folder / name, steps=steps),
        }

    def full_disk(self, *, num_fills: int) -> dict[str, Any]:
        """Let the disk be full so often, then make room."""
        steps = 12
        whole = self._whole(steps)
        disk = self._folder / "disk"
        disk.mkdir()
        mounted = _mount(disk)
        messages = 0
        try:
            for fill in range(num_fills):
                filler = disk / "filler"
                running = self._start(disk / "run", steps=steps, limited=not mounted)
                if mounted:
                    running.until(lambda running=running, fill=fill: running.last_step() >= 2 + 2 * fill)
                    _fill(filler)
                code = running.wait()
                output = running.output(most=WHOLE_LOG)
                if code == 0:
                    raise RunFailedError(f"the run ended well on a full disk, fill {fill + 1}")
                if not any(message in output for message in NO_SPACE):
                    raise RunFailedError(f"the run does not say that the disk is full:\n{output}")
                messages += "free some space" in output
                filler.unlink(missing_ok=True)
                say(f"full disk: fill {fill + 1} of {num_fills}, ended with code {code}")
            self._start(disk / "run", steps=steps).wait_done()
            compared = self._compare(whole, disk / "run", steps=steps)
        finally:
            if mounted:
                subprocess.run(["umount", str(disk)], check=True)
        way = f"tmpfs of {DISK_MIB} MiB" if mounted else "RLIMIT_FSIZE"
        return {"way": way, "fills": num_fills, "said_what_to_do": messages, **compared}

    def _whole(self, steps: int) -> Path:
        """Run so many steps undisturbed."""
        folder = self._folder / f"whole-{steps}"
        if not folder.exists():
            self._start(folder, steps=steps).wait_done()
        return folder

    def _start(self, folder: Path, *, steps: int, program: Path = PROGRAM, limited: bool = False) -> LaunchedRun:
        arguments = ["--recipe", "benchmarks/drills/resume.yaml", "--data.shards", str(self._folder / "shards")]
        arguments += ["--distributed.precision", "fp32", "--run.save-every-steps", str(SAVE_EVERY)]
        arguments += ["--optimizer.steps", str(steps), "--run.stall-timeout-s", "60"]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limited:  # inherited by what is started
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITED_BYTES, hard))
        try:
            log = self._folder / f"{folder.name}.log"  # not on the disk that is full
            return LaunchedRun(
                folder, layout=LAYOUT, arguments=arguments, program=program, time_limit_s=TIME_LIMIT_S, log=log
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def _kill(self, running: LaunchedRun) -> tuple[Killed, bool] | None:
        """Kill one process in the next steps, and tell whether a checkpoint was being written; None at the end."""
        before = running.last_step()
        saving = self._rng.random() < 1 / 3
        past = before + self._rng.randrange(1, STEPS_PER_KILL // 4)  # it trains on for a while until it is dead
        if not running.until(lambda: running.last_step() >= past):
            return None
        if saving and not running.until(running.is_saving):
            return None
        time.sleep(self._rng.uniform(0, 0.05 if saving else 1.0))
        is_saving = running.is_saving()
        return kill_one(running, self._rng, within_s=END_WITHIN_S), is_saving

    def _compare(self, whole: Path, other: Path, *, steps: int) -> dict[str, Any]:
        one, two = (final_tensors(folder, step=steps) for folder in (whole, other))
        expected, actual = noted_micro_batches(whole), noted_micro_batches(other)
        return {
            "tensors": len(one),
            "tensors_differing": sum(key not in two or not torch.equal(one[key], two[key]) for key in one),
            "micro_batches": len(expected),
            "lost": sum(actual.get(key) != samples for key, samples in expected.items())
            + len(actual.keys() - expected.keys()),
        }


def kill_one(running: LaunchedRun, rng: random.Random, *, within_s: float) -> Killed:
    """Kill one process at random, and see that all others end by themselves.

    Where it is the launcher its processes are killed with it, as a scheduler does.
    """
    tree = running.tree()
    victim = rng.choice([process for process in tree if not _is_helper(process)])
    kind = _kind_of(victim, running)
    start = time.monotonic()
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    if kind == "launcher":
        return Killed(kind=kind, seconds=time.monotonic() - start, step=running.kill_all())
    running.expect_gone(tree, within_s=within_s)
    seconds = time.monotonic() - start
    running.process.wait()
    return Killed(kind=kind, seconds=seconds, step=running.last_step())


def _kind_of(victim: psutil.Process, running: LaunchedRun) -> str:
    if victim.pid == running.process.pid and running.layout.engine != "single":
        return "launcher"
    with contextlib.suppress(psutil.NoSuchProcess):
        return "rank" if victim.ppid() == running.process.pid else "worker of a rank"
    return "gone already"


def _is_helper(process: psutil.Process) -> bool:
    """Whether it is Python's own process that removes what others leave; nobody misses it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("resource_tracker" in word for word in process.cmdline())
    return True


def _mount(folder: Path) -> bool:
    """Mount a small file system; return whether that is permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _fill(filler: Path) -> None:
    """Write until the disk is full."""
    block = bytes(1 << 20)
    try:
        with filler.open("ab", buffering=0) as file:
            while file.write(block) == len(block):
                pass
    except OSError:
        return


def say(text: str) -> None:
    """Show a line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
