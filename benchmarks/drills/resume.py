"""Does a killed run end where the uninterrupted one does? ``python benchmarks/drills/resume.py``.

Real programs under the real launchers, at small size, on CPU processes: a Swin of width 16 with two parameter groups,
averaged weights, clipping, gradient accumulation.

* same layout: killed with SIGKILL at random moments, one of them while a checkpoint is being written, and started again
  until done; every tensor of the last checkpoint must be bit-identical to the uninterrupted run's;
* other layouts: each part of the run by other processes, ZeRO stages and loader workers; sample ids, crops and masks of
  every step must be identical, and weights equal up to the order of sums, in fp32 and again in fp64.

``--full`` kills more often and takes longer.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.goals import Goal, finish, machine
from pretrain.verify_resume.launched_run import LaunchedRun, ProcessLayout, final_tensors, noted_micro_batches

ROOT = Path(__file__).resolve().parents[2]
STEPS, SAVE_EVERY = 12, 3
FP32_BOUND, FP64_BOUND = 1e-5, 1e-13

SAME = ProcessLayout(processes=2, engine="deepspeed", zero_stage=1, workers=1)
OTHERS = (
    ProcessLayout(processes=2, engine="deepspeed", zero_stage=1, workers=0),
    ProcessLayout(processes=1, engine="deepspeed", zero_stage=3, workers=3),
    ProcessLayout(processes=4, engine="ddp", workers=1),
)
OTHERS_FP64 = (
    ProcessLayout(processes=2),
    ProcessLayout(processes=1, engine="single", workers=3),
    ProcessLayout(processes=4),
)


def main() -> None:
    """Run the drills and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="8 kills instead of 2")
    parser.add_argument("--seed", type=int, default=None, help="of the kill moments; random if not given")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="resume-"))
    try:
        figures: dict[str, Any] = {"machine": machine(), "steps": STEPS, "kill_seed": seed}
        drill = Drill(folder, rng=random.Random(seed))
        figures |= drill.same_layout(num_kills=8 if options.full else 2)
        figures |= drill.other_layouts("fp32", parts=OTHERS, whole=folder / "whole")
        figures |= drill.other_layouts("fp64", parts=OTHERS_FP64, whole=None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    goals = [
        Goal(name="tensors that differ after kills, same layout", value=figures["same_layout_differing"], at_most=0),
        Goal(name="micro-batches that differ", value=figures["fp32_differing_micro_batches"], at_most=0),
        Goal(name="micro-batches that differ, fp64", value=figures["fp64_differing_micro_batches"], at_most=0),
        Goal(name="largest difference of a weight, fp32", value=figures["fp32_difference"], at_most=FP32_BOUND),
        Goal(name="largest difference of a weight, fp64", value=figures["fp64_difference"], at_most=FP64_BOUND),
    ]
    finish(figures, goals, check=not options.no_goal)


class Drill:
    """Runs the pretraining program in one folder, kills it, and compares what it leaves."""

    def __init__(self, folder: Path, *, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        options = ["write", "--source", "scenes", "--count", "200", "--size", "64", "--out", str(folder / "shards")]
        subprocess.run([sys.executable, "data/main.py", *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def same_layout(self, *, num_kills: int) -> dict[str, Any]:
        """Compare an uninterrupted run with one that is killed, on the same layout."""
        self.start("whole", SAME).wait_done()
        killed_at: list[int] = []
        for kill in range(num_kills):
            running = self.start("killed", SAME)
            killed_at.append(self.kill(running, while_saving=kill == 0))
        self.start("killed", SAME).wait_done()
        whole, killed = (final_tensors(self.folder / name, step=STEPS) for name in ("whole", "killed"))
        differing = sum(not torch.equal(whole[key], killed[key]) for key in whole)
        say(f"same layout, killed after steps {killed_at}: {differing} of {len(whole)} tensors differ")
        return {"same_layout_tensors": len(whole), "same_layout_differing": differing, "killed_after_steps": killed_at}

    def other_layouts(self, precision: str, *, parts: tuple[ProcessLayout, ...], whole: Path | None) -> dict[str, Any]:
        """Compare an uninterrupted run with one whose parts ran on other layouts."""
        if whole is None:
            whole = self.folder / f"whole_{precision}"
            self.start(whole.name, parts[0], precision=precision).wait_done()
        name = f"parts_{precision}"
        for number, layout in enumerate(parts, start=1):
            running = self.start(name, layout, precision=precision)
            if number == len(parts):
                running.wait_done()
                continue
            until_step = number * STEPS // len(parts)
            running.until(lambda running=running, until_step=until_step: running.last_step() >= until_step)
            reached = running.kill_all()
            if reached >= (number + 1) * STEPS // len(parts):
                sys.exit(f"part {number} went on to step {reached} before it was killed: the parts overlap too much")
        one, other = (final_tensors(folder, step=STEPS) for folder in (whole, self.folder / name))
        keys = [key for key in one if key[0] in ("weight", "ema")]
        difference = max(float((one[key] - other[key]).abs().max()) for key in keys)
        expected, actual = noted_micro_batches(whole), noted_micro_batches(self.folder / name)
        differing = sum(actual.get(key) != samples for key, samples in expected.items())
        layouts = " -> ".join(map(str, parts))
        say(f"{precision}, {layouts}: {differing} micro-batches differ, weights by {difference:.1e}")
        return {f"{precision}_differing_micro_batches": differing, f"{precision}_difference": difference}

    def start(self, name: str, layout: ProcessLayout, *, precision: str = "fp32") -> LaunchedRun:
        """Start or resume the run ``name``."""
        arguments = ["--recipe", "benchmarks/drills/resume.yaml", "--data.shards", str(self.folder / "shards")]
        arguments += ["--distributed.precision", precision, "--run.save-every-steps", str(SAVE_EVERY)]
        arguments += ["--optimizer.steps", str(STEPS)]
        return LaunchedRun(self.folder / name, layout=layout, arguments=arguments)

    def kill(self, running: LaunchedRun, *, while_saving: bool) -> int:
        """Kill at a random moment after the next step, or in the middle of a checkpoint; return the last step noted."""
        before = running.last_step()
        running.until(lambda: running.last_step() > before)
        if while_saving:
            running.until(running.is_saving)
        else:
            time.sleep(self.rng.uniform(0, 1.0))
        return running.kill_all()


def say(text: str) -> None:
    """Show a line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
