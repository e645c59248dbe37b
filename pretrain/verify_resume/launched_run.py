"""A pretraining run as its own program under a launcher, started to be killed; and what it left, for comparison.

Resuming cannot be proved within one process: here whole programs are started, killed with SIGKILL, started again, and
their checkpoints and sample logs are compared (``pretrain/main.py verify-resume``, ``benchmarks/drills/resume.py`` and
``kills.py``).
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import Tensor

from engine.checkpoint.slices import Kind
from engine.checkpoint.store import open_checkpoint
from engine.errors import REFUSAL, UserError
from engine.run.folder import checkpoint_steps, step_folder
from engine.run.sample_log import read_sample_logs
from engine.terms import MicroBatchKey

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "pretrain" / "main.py"
TENSORS: tuple[Kind, ...] = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")
TAIL = 3000


class RunFailedError(UserError):
    """A run did not end as it should; the message holds the end of its output."""


@dataclass(frozen=True, kw_only=True)
class ProcessLayout:
    """How the processes share the work."""

    processes: int
    """Training processes on this machine."""
    engine: str = "ddp"
    """`distributed.engine`: deepspeed, ddp or single."""
    zero_stage: int = 1
    """DeepSpeed's stage."""
    workers: int = 0
    """Loader workers of each process."""

    def __str__(self) -> str:
        """Name it for a table."""
        engine = f"ZeRO-{self.zero_stage}" if self.engine == "deepspeed" else self.engine
        return f"{self.processes} x {engine}, {self.workers} workers"

    @property
    def launcher(self) -> list[str]:
        """The command before the program."""
        if self.engine == "deepspeed":
            command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num_machines", "1"]
            command += ["--num_processes", str(self.processes), "--main_process_port", "0", "--mixed_precision", "no"]
            return [*command, "--dynamo_backend", "no", "--use_deepspeed", "--zero_stage", str(self.zero_stage)]
        if self.engine == "ddp":
            return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [sys.executable]

    @property
    def options(self) -> list[str]:
        """The program's own options for it."""
        options = ["--distributed.engine", self.engine, "--distributed.zero-stage", str(self.zero_stage)]
        return [*options, "--data.workers", str(self.workers)]


class LaunchedRun:
    """One start of a run.

    Args:
        folder: the run folder.
        layout: how the processes share the work.
        arguments: the recipe and other options of the program; the sample log must be on.
        program: what to launch.
        time_limit_s: longest time between two signs of progress, and to the end.
        log: file to which the programs' output is added; by default a ``.log`` file beside the run folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        layout: ProcessLayout,
        arguments: Sequence[str],
        program: Path = PROGRAM,
        time_limit_s: float = 180,
        log: Path | None = None,
    ) -> None:
        self.folder, self.layout, self._limit_s = folder, layout, time_limit_s
        self._log = log or folder.with_suffix(".log")
        command = [*layout.launcher, str(program), *arguments, "--run.folder", str(folder), *layout.options]
        environment = {name: value for name, value in os.environ.items() if name != REFUSAL}  # its end is not ours
        with self._log.open("ab") as output:
            self._output_start = output.tell()
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def wait(self) -> int:
        """Wait for the run's end, good or bad; return its exit code."""
        try:
            code = self.process.wait(self._limit_s)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise RunFailedError(f"a run did not end in {self._limit_s:g} s:\n{self.output()}") from None
        self._check_processes()
        return code

    def wait_done(self) -> None:
        """Wait for the run's end.

        Raises:
            RunFailedError: it failed, or does not end.
        """
        code = self.wait()
        if code:
            raise RunFailedError(f"a run ended with exit code {code}:\n{self.output()}")

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until ``condition`` holds; return False if the run ended well before.

        Raises:
            RunFailedError: it failed, or makes no progress.
        """
        deadline = time.monotonic() + self._limit_s
        while self.process.poll() is None and not condition():
            if time.monotonic() > deadline:
                self.kill_all()
                raise RunFailedError(f"a run made no progress:\n{self.output()}")
            time.sleep(0.002)
        if self.process.poll():
            self.wait_done()
        return self.process.poll() is None

    def last_step(self) -> int:
        """Read the number of the last step that process 0 noted, or -1."""
        path = self.folder / "samples-00000.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        whole = [line for line in lines if line.endswith("}")]
        return json.loads(whole[-1])["step"] if whole else -1

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.folder / "checkpoints").glob("*.partial"))

    def kill_all(self) -> int:
        """Kill the launcher and all that it started, and see that nothing lives on; return the last step noted."""
        if self.process.poll() is None:
            tree = self.tree()
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.expect_gone(tree, within_s=30.0)
        self.process.wait()
        self._check_processes()
        return self.last_step()

    def tree(self) -> list[psutil.Process]:
        """List the launcher and all that it started, which has process groups of its own."""
        try:
            launcher = psutil.Process(self.process.pid)
            return [launcher, *launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def output(self, *, most: int = TAIL) -> str:
        """Read the last characters, at ``most`` so many, of what the programs have written since this start."""
        return self._log.read_bytes()[self._output_start :].decode(errors="replace")[-most:]

    def expect_gone(self, tree: list[psutil.Process], *, within_s: float) -> None:
        """Wait until none of these processes is left.

        Raises:
            RunFailedError: some are; they are killed.
        """
        _, alive = psutil.wait_procs(tree, timeout=within_s)
        if alive:
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            raise RunFailedError(f"these processes went on for {within_s:g} s: {alive}\n{self.output()}")

    def _check_processes(self) -> None:
        """Refuse a launcher that started fewer processes than the layout has: it would prove nothing."""
        num_logs = len(list(self.folder.glob("samples-*.jsonl")))
        if num_logs < self.layout.processes:
            raise RunFailedError(
                f"{self.folder.name}: {num_logs} processes noted samples, expected {self.layout.processes}:\n"
                f"{self.output()}"
            )


def final_tensors(run_folder: Path, *, step: int) -> dict[tuple[Kind, str], Tensor]:
    """Read all tensors of a run's checkpoint of ``step``, its last.

    Raises:
        RunFailedError: the run did not come so far.
    """
    steps = checkpoint_steps(run_folder / "checkpoints")
    if not steps or steps[-1] != step:
        raise RunFailedError(f"{run_folder} came to checkpoint {steps[-1] if steps else 'none'}, expected {step}")
    checkpoint = open_checkpoint(step_folder(run_folder / "checkpoints", step))
    return {(kind, name): checkpoint.read_full(kind, name) for kind in TENSORS for name in checkpoint.names(kind)}


def noted_micro_batches(run_folder: Path) -> dict[MicroBatchKey, str]:
    """Read what each (step, micro_batch) was made of.

    Raises:
        RunFailedError: one that was done twice was made of other samples the second time.
    """
    try:
        return read_sample_logs(run_folder)
    except UserError as error:
        raise RunFailedError(str(error)) from None
