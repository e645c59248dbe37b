"""Training under a real Slurm, disturbed in every way that clusters know: the weights end as in the undisturbed run.

    python benchmarks/drills/slurm_drills.py                 all drills, one after the other in one run
    python benchmarks/drills/slurm_drills.py --drills requeue node   some of them

Two slurmd and slurmctld run on this machine (`tests/slurm/cluster.py`); the run is a two-node DeepSpeed pretraining of
a Swin of width 16, submitted by `launch/main.py`. Needs root and Debian's `slurm-wlm` and `munge`.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.goals import Goal, finish, machine
from launch.job_folder import JobFolder
from pretrain.verify_resume.launched_run import final_tensors, noted_micro_batches
from tests.slurm.cluster import Cluster, missing, running

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_DRILL, SAVE_EVERY, NEW_STEPS = 20, 8, 3
STEPS_UNTIL_DOWN = 150
"""Done while Slurm waits for a slurmd that is gone: what that slurmd started trains on."""
LIMIT_S = 600.0
WARNING_S = 60
CLUSTER = f"""
scheduler: slurm
partition: drill
processes_per_node: 1
time_limit_min: 30
warning_s: {WARNING_S}
step_wait_s: 20
environment: [OMP_NUM_THREADS=1]
restart: {{backoff_s: 1}}
"""


def main() -> None:
    """Run the drills and compare the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drills", nargs="+", choices=DRILLS, default=list(DRILLS), help="which; all without it")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(f"error: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # so that the daemons are put away
    folder = Path(tempfile.mkdtemp(prefix="slurm-drills-"))
    try:
        (folder / "slurm").mkdir()
        with running(folder / "slurm") as cluster:
            figures, goals = measure(cluster, folder, drills=tuple(options.drills))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish({"machine": machine(), **figures}, goals, check=not options.no_goal)


def measure(cluster: Cluster, folder: Path, *, drills: tuple[str, ...]) -> tuple[dict[str, Any], list[Goal]]:
    """Carry out the drills: their figures, and the goals that they must meet."""
    more = STEPS_UNTIL_DOWN if "slurmd" in drills else 0
    drill = Drill(cluster, folder, steps=STEPS_PER_DRILL * (len(drills) + 1) + more)
    drill.submit("whole")
    drill.until_done()
    drill.submit("disturbed")
    figures = {name: drill.disturb(name) for name in drills}
    drill.until_done()
    whole, disturbed = (final_tensors(folder / name, step=drill.steps) for name in ("whole", "disturbed"))
    differing = sum(not torch.equal(whole[key], disturbed[key]) for key in whole)
    expected, actual = noted_micro_batches(folder / "whole"), noted_micro_batches(folder / "disturbed")
    changed = sum(actual.get(key) != samples for key, samples in expected.items())
    say(
        f"{len(drills)} disturbances: {differing} of {len(whole)} tensors and {changed} of {len(expected)} "
        "micro-batches differ"
    )
    saves = [drill["signal_to_saved_s"] for drill in figures.values() if drill["signal_to_saved_s"] is not None]
    goals = [
        Goal(name="tensors that differ", value=differing, at_most=0),
        Goal(name="micro-batches that differ", value=changed, at_most=0),
        *[Goal(name="seconds from a signal to a safe checkpoint", value=s, at_most=WARNING_S) for s in saves],
    ]
    return {"steps": drill.steps, "tensors": len(whole), "drills": figures}, goals


class Drill:
    """One run after another under one Slurm."""

    def __init__(self, cluster: Cluster, folder: Path, *, steps: int) -> None:
        self.cluster, self.steps, self._folder = cluster, steps, folder
        options = ["write", "--source", "scenes", "--count", "200", "--size", "64", "--out", str(folder / "shards")]
        subprocess.run([sys.executable, "data/main.py", *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (folder / "cluster.yaml").write_text(CLUSTER)

    def submit(self, name: str, *more: str) -> None:
        """Submit the run ``name`` on two nodes."""
        self.folder = JobFolder(self._folder / name)
        self._launch(*self.arguments(name), "--nodes", "2", *more)
        self.job = self.folder.read().ids[-1]

    def arguments(self, name: str) -> list[str]:
        """The launcher's arguments for the run ``name``."""
        arguments = [
            "pretrain",
            "--recipe",
            "benchmarks/drills/resume.yaml",
            "--data.shards",
            str(self._folder / "shards"),
        ]
        arguments += [
            "--run.folder",
            str(self._folder / name),
            "--data.workers",
            "1",
            "--optimizer.steps",
            str(self.steps),
        ]
        arguments += ["--distributed.precision", "fp32", "--run.save-every-steps", str(SAVE_EVERY)]
        return [*arguments, "--cluster", str(self._folder / "cluster.yaml")]

    def resume(self, *options: str) -> None:
        """Submit the run again."""
        self._launch("resume", str(self.folder.run), *options)
        self.job = self.folder.read().ids[-1]

    def _launch(self, *arguments: str) -> None:
        command = [sys.executable, "launch/main.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.cluster.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def disturb(self, name: str) -> dict[str, Any]:
        """Wait until the run makes progress, disturb it, and wait until it makes progress again."""
        first = self.step()
        newest = self.folder.newest_step()
        with_checkpoint = name in NEEDS_CHECKPOINT
        self.until(
            lambda: self.step() >= first + NEW_STEPS and (not with_checkpoint or self.folder.newest_step() > newest)
        )
        starts, begun, at_step = len(self.events("start")), time.time(), self.step()
        DRILLS[name](self)
        self.until(lambda: len(self.events("start")) > starts, what=f"a restart after {name}")
        last = self.events("start")[-1]
        self.cluster.run("scontrol", "update", f"JobId={self.job}", "TimeLimit=30")  # a shorter one would come again
        saved = [event["seconds"] for event in self.events("saved") if event["time"] > begun]
        figures = {
            "disturbed_after_step": at_step,
            "went_on_from_step": last["step"],
            "signal_to_saved_s": round(saved[-1], 1) if saved else None,
            "until_started_again_s": round(last["time"] - begun, 1),
        }
        say(f"{name}: {figures}")
        return figures

    def until_done(self) -> None:
        """Wait for the run's end."""
        self.until(lambda: bool(self.events("decision")) and not self.events("decision")[-1]["go_on"], what="the end")
        if self.step() < self.steps:
            self.fail(f"ended at step {self.step()}")

    def until(self, condition: Callable[[], bool], *, what: str = "progress") -> None:
        """Wait for something, without the two minutes that Slurm lets requeued jobs wait."""
        deadline, moved = time.monotonic() + LIMIT_S, 0.0
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"no {what} in {LIMIT_S:.0f} s")
            pending = self.cluster.run("squeue", "-h", "-j", self.job, "-o", "%T %r", check=False)
            if pending == "PENDING BeginTime" and time.monotonic() > moved + 10:
                moved = time.monotonic()
                self.cluster.run("scontrol", "update", f"JobId={self.job}", "StartTime=now+3", check=False)
            time.sleep(0.3)

    def fail(self, why: str) -> None:
        """End the program with what the job said."""
        logs = "".join(path.read_text()[-3000:] for path in sorted(self.folder.jobs.glob("*_log.out")))
        sys.exit(
            f"{self.folder.run.name}: {why}\n{self.folder.events()}\n{self.cluster.run('squeue', check=False)}\n{logs}"
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        """Read the events of one kind since the last submission."""
        events = self.folder.events()
        last = max(number for number, event in enumerate(events) if event["event"] == "submit")
        return [event for event in events[last:] if event["event"] == name]

    def step(self) -> int:
        """Read the last step reported, 0 before the first."""
        path = self.folder.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def processes(self, *, node: int) -> list[psutil.Process]:
        """Find the job's processes of a node, the supervisor and the loader workers too."""
        processes: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environ = process.environ()
                if (
                    environ.get("SLURM_JOB_ID") == self.job
                    and environ.get("SLURM_NODEID") == str(node)
                    and "SLURM_PROCID" in environ
                ):
                    processes.append(process)
        return processes


def requeue(drill: Drill) -> None:
    """Somebody puts the running job back into the queue."""
    drill.cluster.run("scontrol", "requeue", drill.job)


def preempt(drill: Drill) -> None:
    """A job of higher priority takes both nodes for a moment."""
    drill.cluster.run("sbatch", "-p", "urgent", "-N2", "-n2", "-o", "/dev/null", "--wrap", "sleep 1")


def time_limit(drill: Drill) -> None:
    """The time limit comes near."""
    elapsed = drill.cluster.run("squeue", "-h", "-j", drill.job, "-o", "%M")
    minutes, seconds = [0, *map(int, elapsed.split(":"))][-2:]
    limit = 60 * minutes + seconds + WARNING_S + 5
    drill.cluster.run("scontrol", "update", f"JobId={drill.job}", f"TimeLimit=00:{limit // 60:02d}:{limit % 60:02d}")


def step_cancelled(drill: Drill) -> None:
    """Somebody cancels the job's step, not the job."""
    drill.cluster.run("scancel", f"{drill.job}.0")


def rank(drill: Drill) -> None:
    """One training process is killed."""
    ranks = [process for process in drill.processes(node=1) if process.environ().get("RANK") == "1"]
    min(ranks, key=lambda process: process.create_time()).send_signal(signal.SIGKILL)


def node(drill: Drill) -> None:
    """All processes of a node are killed at once."""
    for process in drill.processes(node=1):
        with contextlib.suppress(psutil.Error):
            process.kill()


def slurmd(drill: Drill) -> None:
    """A node's slurmd is killed and comes back when Slurm has given the node up."""
    drill.cluster.kill_node("n2")
    drill.until(lambda: "down" in drill.cluster.run("sinfo", "-h", "-n", "n2", "-o", "%T"), what="node that is down")
    drill.cluster.start_node("n2")


DRILLS: dict[str, Callable[[Drill], None]] = {
    "requeue": requeue,
    "node": node,
    "preempt": preempt,
    "time_limit": time_limit,
    "step_cancelled": step_cancelled,
    "rank": rank,
    "slurmd": slurmd,
}
NEEDS_CHECKPOINT = ("node", "rank", "slurmd")
"""Drills that cannot save at the end: they wait for a checkpoint of the attempt, to show that it is used."""


def say(text: str) -> None:
    """Show a line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
