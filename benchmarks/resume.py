"""Does a killed run end where the uninterrupted one does? ``python benchmarks/resume.py``.

Real programs under the real launchers, at small size, on CPU processes: a Swin of width 16 with two parameter groups,
averaged weights, clipping, gradient accumulation.

* same layout: killed with SIGKILL at random moments, one of them while a checkpoint is being written, and started again
  until done; every tensor of the last checkpoint must be bit-identical to the uninterrupted run's;
* other layouts: each part of the run by other processes, ZeRO stages and loader workers; sample ids, crops and masks of
  every step must be identical, and weights equal up to the order of sums, in fp32 and again in fp64.

``--full`` kills more often and takes longer.
"""

import argparse
import contextlib
import json
import random
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
from engine.checkpoint import CheckpointStore

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVE_EVERY = 12, 3
TIME_LIMIT_S = 180
FP32_BOUND, FP64_BOUND = 1e-5, 1e-13
TENSORS = ("weight", "exp_avg", "exp_avg_sq", "ema")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the processes share the work."""

    processes: int
    engine: str = "ddp"
    zero_stage: int = 1
    workers: int = 0

    def __str__(self) -> str:
        """Name it in one word or two."""
        how = f"ZeRO-{self.zero_stage}" if self.engine == "deepspeed" else self.engine
        return f"{self.processes} x {how}, {self.workers} workers"


SAME = Layout(processes=2, engine="deepspeed", zero_stage=1, workers=1)
OTHERS = (
    Layout(processes=2, engine="deepspeed", zero_stage=1, workers=0),
    Layout(processes=1, engine="deepspeed", zero_stage=3, workers=3),
    Layout(processes=4, engine="ddp", workers=1),
)
OTHERS_FP64 = (Layout(processes=2), Layout(processes=1, engine="single", workers=3), Layout(processes=4))


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
        words = ["write", "--source", "scenes", "--count", "200", "--size", "64", "--out", str(folder / "shards")]
        subprocess.run([sys.executable, "data/main.py", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def same_layout(self, *, num_kills: int) -> dict[str, Any]:
        """Compare an uninterrupted run with one that is killed, on the same layout."""
        self.start("whole", SAME).wait_done()
        killed_at: list[int] = []
        for kill in range(num_kills):
            running = self.start("killed", SAME)
            killed_at.append(running.kill(self.rng, while_saving=kill == 0))
        self.start("killed", SAME).wait_done()
        whole, killed = (tensors(self.folder / name) for name in ("whole", "killed"))
        differing = sum(not torch.equal(whole[key], killed[key]) for key in whole)
        say(f"same layout, killed after steps {killed_at}: {differing} of {len(whole)} tensors differ")
        return {"same_layout_tensors": len(whole), "same_layout_differing": differing, "killed_after_steps": killed_at}

    def other_layouts(self, precision: str, *, parts: tuple[Layout, ...], whole: Path | None) -> dict[str, Any]:
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
            reached = running.kill_after_step(number * STEPS // len(parts))
            if reached >= (number + 1) * STEPS // len(parts):
                sys.exit(f"part {number} went on to step {reached} before it was killed: the parts overlap too much")
        one, other = tensors(whole), tensors(self.folder / name)
        keys = [key for key in one if key[0] in ("weight", "ema")]
        difference = max(float((one[key] - other[key]).abs().max()) for key in keys)
        expected, found = micro_batches(whole), micro_batches(self.folder / name)
        differing = sum(found.get(key) != words for key, words in expected.items())
        say(
            f"{precision}, {' -> '.join(map(str, parts))}: {differing} micro-batches differ, weights by {difference:.1e}"
        )
        return {f"{precision}_differing_micro_batches": differing, f"{precision}_difference": difference}

    def start(self, name: str, layout: Layout, *, precision: str = "fp32") -> "Running":
        """Start or resume the run ``name``."""
        launch = [sys.executable]
        if layout.engine == "deepspeed":
            launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num_machines", "1"]
            launch += ["--num_processes", str(layout.processes), "--main_process_port", "0", "--mixed_precision", "no"]
            launch += ["--dynamo_backend", "no", "--use_deepspeed", "--zero_stage", str(layout.zero_stage)]
        elif layout.engine == "ddp":
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(layout.processes)]
        words = ["--recipe", "benchmarks/resume.yaml", "--data.shards", str(self.folder / "shards")]
        words += ["--run.folder", str(self.folder / name), "--distributed.engine", layout.engine]
        words += ["--distributed.zero-stage", str(layout.zero_stage), "--data.workers", str(layout.workers)]
        words += ["--distributed.precision", precision, "--run.save-every-steps", str(SAVE_EVERY)]
        words += ["--optimizer.steps", str(STEPS)]
        return Running([*launch, "pretrain/main.py", *words], self.folder / name, processes=layout.processes)


class Running:
    """A started run."""

    def __init__(self, words: list[str], folder: Path, *, processes: int) -> None:
        self.folder, self.processes = folder, processes
        self.output = folder.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=self.output, stderr=subprocess.STDOUT)

    def wait_done(self) -> None:
        """Wait for the run's end."""
        try:
            code = self.process.wait(TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._kill()
            sys.exit(f"a run did not end in {TIME_LIMIT_S} s:\n{Path(self.output.name).read_text()[-4000:]}")
        self._check_processes()
        if code:
            sys.exit(f"a run ended with exit code {code}:\n{Path(self.output.name).read_text()[-4000:]}")

    def kill(self, rng: random.Random, *, while_saving: bool) -> int:
        """Kill at a random moment after the next step, or in the middle of a checkpoint; return the last step noted."""
        before = self.last_step()
        self._until(lambda: self.last_step() > before)
        if while_saving:
            self._until(lambda: any((self.folder / "checkpoints").glob("*.partial")))
        else:
            time.sleep(rng.uniform(0, 1.0))
        return self._kill()

    def kill_after_step(self, step: int) -> int:
        """Kill once ``step`` has been started."""
        self._until(lambda: self.last_step() >= step)
        return self._kill()

    def last_step(self) -> int:
        """Return the number of the last step that process 0 noted, or -1."""
        path = self.folder / "samples-00000.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        return json.loads(whole[-1])["step"] if whole else -1

    def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + TIME_LIMIT_S
        while self.process.poll() is None and not condition():
            if time.monotonic() > deadline:
                self._kill()
                sys.exit(f"a run made no progress:\n{Path(self.output.name).read_text()[-4000:]}")
            time.sleep(0.002)
        if self.process.poll():
            self.wait_done()

    def _check_processes(self) -> None:
        """End the drill if the launcher started fewer processes than the layout has: it would prove nothing."""
        found = len(list(self.folder.glob("samples-*.jsonl")))
        if found < self.processes:
            sys.exit(f"{self.folder.name}: {found} processes noted samples, expected {self.processes}")

    def _kill(self) -> int:
        """Kill the launcher and all that it started, which has process groups of its own, and see that nothing lives on."""
        if self.process.poll() is None:
            launcher = psutil.Process(self.process.pid)
            started = [*launcher.children(recursive=True), launcher]
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            _, alive = psutil.wait_procs(started, timeout=30)
            if alive:
                sys.exit(f"these processes survived SIGKILL: {alive}")
        self.process.wait()
        self._check_processes()
        return self.last_step()


def tensors(run: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Return all tensors of a run's last checkpoint."""
    checkpoint = CheckpointStore(run / "checkpoints", rank=0, world_size=1).latest()
    if checkpoint is None or checkpoint.step != STEPS:
        sys.exit(f"{run} did not reach step {STEPS}")
    return {(kind, name): checkpoint.read_full(kind, name) for kind in TENSORS for name in checkpoint.names(kind)}


def micro_batches(run: Path) -> dict[tuple[int, int], str]:
    """Return what each (step, micro_batch) was made of; one that was done twice must have been the same both times."""
    found: dict[tuple[int, int], str] = {}
    for path in sorted(run.glob("samples-*.jsonl")):
        for text in path.read_text().splitlines():
            if not text.endswith("}"):
                continue  # cut off by a kill
            line = json.loads(text)
            key, words = (line["step"], line["micro_batch"]), json.dumps(line)
            if found.setdefault(key, words) != words:
                sys.exit(f"{path}: step {key[0]}, micro-batch {key[1]} was made of other samples the second time")
    return found


def say(words: str) -> None:
    """Show a line of progress."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
