"""One fault drill: a folder of its own, programs run in it as a user runs them, and what they must have left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "benchmarks" / "drills" / "resume.yaml"
NUM_SAMPLES, PER_SHARD, STEPS, BATCH = 320, 32, 10, 32
LIMIT_S = 180.0
GRACE_S = 5.0
POLL_S = 0.02


class Missed(Exception):  # noqa: N818 - it is what it says
    """Something that a program should have done and did not."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program ended."""

    code: int
    """Its exit code."""
    output: str
    """What it said."""
    errors: str
    """What it said on standard error."""
    seconds: float
    """How long it ran."""
    peak_mib: float
    """Most memory that it, or one of its children, held."""

    def expect_sound(self) -> "Ended":
        """Insist that it succeeded."""
        expect(self.code == 0, f"exit code {self.code}, expected 0: {self.errors[-2000:]}")
        return self

    def expect_error(self, *parts: str) -> "Ended":
        """Insist that it failed, with one last line that holds all ``words``, and no traceback."""
        expect(self.code == 1, f"exit code {self.code}, expected 1: {self.errors[-2000:]}")
        expect("Traceback" not in self.errors, f"a traceback: {self.errors[-2000:]}")
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        expect(len(lines) == 1, f"{len(lines)} error lines, expected 1: {self.errors[-2000:]}")
        absent = [word for word in parts if word not in lines[0]]
        expect(not absent, f"the error does not say {absent}: {lines[0]}")
        return self


@dataclass(frozen=True)
class Trained:
    """What a training run wrote down."""

    folder: Path

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of each step."""
        return [(line["step"], line["loss"]) for line in self._lines("metrics.jsonl")]

    @property
    def num_bad(self) -> int:
        """Places that another sample took, as counted in the metrics."""
        return int(sum(line["bad_samples"] for line in self._lines("metrics.jsonl")))

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """The bad samples that it named."""
        return self._lines("bad_samples.jsonl")

    @property
    def places(self) -> dict[tuple[int, int, int], list[float]]:
        """Sample, repeat and crop of each (step, micro-batch, place)."""
        return {
            (line["step"], line["micro_batch"], place): [line["ids"][place], line["repeats"][place], *crop]
            for line in self._lines("samples-00000.jsonl")
            for place, crop in enumerate(line["crops"])
        }

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(kw_only=True)
class Drill:
    """A place for one drill, whose programs must all end within ``LIMIT_S``, leaving no process."""

    folder: Path
    """Everything that it writes is in here."""
    sound: Path
    """Shards that nothing is wrong with: `NUM_SAMPLES` generated images, `PER_SHARD` in each. Not to be changed."""
    reference: Trained | None = None
    """What training on them gives."""
    reference_mib: float = 0.0
    """The most memory that it took."""
    deadline: float = field(default_factory=lambda: time.monotonic() + LIMIT_S)
    """When all must have ended."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        (self.folder / "cwd" / "of" / "program").mkdir(parents=True)

    @property
    def canary(self) -> Path:
        """A file that hostile data try to make."""
        return self.folder / "canary"

    def data(self, *options: str | Path) -> Ended:
        """Run `data/main.py`."""
        return self._run([str(ROOT / "data" / "main.py"), *map(str, options)])

    def pretrain(self, shards: Path | str, *options: str | Path, run: str = "run", prefix: Sequence[str] = ()) -> Ended:
        """Train on ``shards`` in the run folder ``run``."""
        settings = ["--optimizer.steps", str(STEPS), "--data.workers", "1", "--data.window-samples", "1"]
        settings += ["--data.cache.folder", str(self.folder / "cache")]
        places = ["--data.shards", shards, "--run.folder", self.folder / run]
        line = [ROOT / "pretrain" / "main.py", "--recipe", RECIPE, *settings, *places, *options]
        return self._run([str(word) for word in line], prefix=prefix)

    def trained(self, run: str = "run") -> Trained:
        """Read what a run wrote down."""
        return Trained(self.folder / run)

    def expect_reference(self, run: str = "run") -> None:
        """Insist that a run had the samples, crops, masks and losses of the sound one."""
        assert self.reference is not None
        trained = self.trained(run)
        expect(trained.losses == self.reference.losses, f"other losses than on sound shards: {trained.losses}")
        expect(trained.places == self.reference.places, "other samples or crops than on sound shards")
        expect(not trained.ledger and not trained.num_bad, f"samples were replaced: {trained.ledger}")

    def _run(self, command: Sequence[str], *, prefix: Sequence[str] = ()) -> Ended:
        files = [self.folder / "stdout", self.folder / "stderr"]
        start = time.monotonic()
        with files[0].open("w") as output, files[1].open("w") as errors:
            process = subprocess.Popen(
                [*prefix, sys.executable, *command],
                cwd=self.folder / "cwd" / "of" / "program",
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
            try:
                code, peak_mib = self._wait(process)
            except BaseException:
                _kill_session(process.pid)
                process.wait()
                raise
        seconds = time.monotonic() - start
        self._expect_no_process_left(process.pid)
        expect(not self.canary.exists(), "code of the data was run")
        outputs = [path.read_text() for path in files]
        return Ended(code=code, output=outputs[0], errors=outputs[1], seconds=seconds, peak_mib=peak_mib)

    def _wait(self, process: subprocess.Popen[bytes]) -> tuple[int, float]:
        """Wait for exit code and peak memory, which the kernel gives only for children that are waited for this way."""
        while time.monotonic() < self.deadline:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage.ru_maxrss / 2**10
            time.sleep(POLL_S)
        errors = (self.folder / "stderr").read_text()[-2000:]
        raise Missed(f"it did not end within the {LIMIT_S:.0f} s of a drill: {errors}")

    def _expect_no_process_left(self, session: int) -> None:
        deadline = time.monotonic() + GRACE_S
        while pids := _session(session):
            if time.monotonic() > deadline:
                _kill_session(session)
                raise Missed(f"{len(pids)} processes outlived the program")
            time.sleep(POLL_S)


def expect(holds: bool, otherwise: str) -> None:
    """Insist on something.

    Raises:
        Missed: it does not hold.
    """
    if not holds:
        raise Missed(otherwise)


def _kill_session(number: int) -> None:
    """Kill the processes of a session that this program started."""
    for pid in _session(number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session(number: int) -> list[int]:
    """Find the processes of a session that are still there."""
    pids: list[int] = []
    for process in psutil.process_iter(["status"]):
        try:
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == number:
                pids.append(process.pid)
        except (ProcessLookupError, PermissionError):
            continue
    return pids
