"""What a run says while it runs: one JSON line per report, TensorBoard, Weights & Biases, a progress bar.

A line of ``metrics.jsonl`` has ``step`` (steps done), ``total_steps``, ``time`` (Unix seconds), ``images_per_s``,
``peak_memory_bytes``, ``energy_j`` (main process's GPU; absent without one), ``seconds`` since the line before,
``seconds_data``, ``seconds_transfer``, ``seconds_compute``, ``seconds_communication`` of them (of the main process, as
its host sees it: nothing synchronises the device to measure), and the trainer's own metrics. With several processes
also ``seconds_busy_median`` and ``seconds_busy_max``, the processes' seconds without communication, and
``slowest_process`` with ``slowest_process_ratio``, its seconds over the median. What is not finite is null.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
import math
import resource
import statistics
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

from engine.config import ReportConfig
from engine.errors import UserError
from engine.run.durable import append
from engine.run.energy import EnergyMeter
from engine.run.folder import RunFolder
from engine.run.status import format_seconds

logger = logging.getLogger(__name__)

Phase = Literal["data", "transfer", "compute", "communication"]
PHASES: tuple[Phase, ...] = ("data", "transfer", "compute", "communication")
STRAGGLES = 1.5
"""A process whose time exceeds this multiple of the median is named."""


class Reporter:
    """Measures where the time goes and writes the reports; on other processes than the main one it only measures.

    Args:
        folder: where the lines go.
        config: what else to write.
        total_steps: length of the run, for the time left.
        is_main: whether this is the process that writes.
        first_step: steps done before, in a resumed run.
        device: whose peak memory and energy to report; None is the CPU.
        console: where the progress bar goes, if it is a terminal; standard error by default.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: ReportConfig,
        *,
        total_steps: int,
        is_main: bool = True,
        first_step: int = 0,
        device: torch.device | None = None,
        console: Console | None = None,
    ) -> None:
        self._folder, self._config = folder, config
        self._total_steps, self._is_main, self._device = total_steps, is_main, device
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._last_step, self._last_time = first_step, time.monotonic()
        self._seconds_per_step: float | None = None
        self._tensorboard: SummaryWriter | None = None
        self._wandb: Any = None
        self._progress: Progress | None = None
        self._energy: EnergyMeter | None = None
        if is_main:
            self._energy = EnergyMeter(device)
            if config.wandb_project is not None:
                self._wandb = _start_wandb(config.wandb_project, folder)
            if config.tensorboard:
                # What a killed run wrote past the checkpoint is hidden, as `cut_metrics` does for the lines.
                self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)
            self._start_progress(console or Console(stderr=True), first_step)

    @contextlib.contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        """Add the host time spent inside to ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - start

    def report(self, step: int, metrics: Mapping[str, float], *, num_images: int) -> None:
        """Write one report after ``step`` steps; all processes trained on ``num_images`` since the one before."""
        now = time.monotonic()
        elapsed, steps = max(now - self._last_time, 1e-9), max(step - self._last_step, 1)
        line = {
            "step": step,
            "total_steps": self._total_steps,
            "time": time.time(),
            "images_per_s": num_images / elapsed,
            "peak_memory_bytes": peak_memory_bytes(self._device),
            "seconds": elapsed,
            **{f"seconds_{phase}": seconds for phase, seconds in self._seconds.items()},
            **metrics,
        }
        if self._energy is not None and self._energy.available:
            line["energy_j"] = self._energy.joules()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._last_step, self._last_time = step, now
        recent = elapsed / steps
        self._seconds_per_step = (
            recent if self._seconds_per_step is None else 0.7 * self._seconds_per_step + 0.3 * recent
        )
        if self._is_main:
            self._write(step, line)

    @property
    def busy_s(self) -> float:
        """Seconds since the last report in which this process did not wait for others."""
        return sum(seconds for phase, seconds in self._seconds.items() if phase != "communication")

    def rewind(self, step: int) -> None:
        """Go back to ``step``: what follows is reported again."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._last_step, self._last_time = step, time.monotonic()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = SummaryWriter(str(self._folder.tensorboard), purge_step=step + 1)

    def close(self) -> None:
        """End the progress bar and flush what is open."""
        if self._progress is not None:
            self._progress.stop()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> "Reporter":
        """Report within the context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, whatever happened."""
        self.close()

    def _write(self, step: int, line: Mapping[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in line.items()}
        try:
            append(self._folder.metrics, json.dumps(finite) + "\n")
        except OSError as error:  # a full disk must reach the checkpoint's own message, not end the run here
            logger.warning("no metrics for step %d in %s: %s", step, self._folder.metrics, error.strerror)
        values = {key: value for key, value in line.items() if key not in ("step", "total_steps", "time")}
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        self._show(step, line)

    def _show(self, step: int, line: Mapping[str, float]) -> None:
        text = f"loss {line['loss']:.4f}  " if "loss" in line else ""
        text += f"{line['images_per_s']:.1f} images/s"
        if line.get("slowest_process_ratio", 1.0) > STRAGGLES:
            text += (
                f"  process {line['slowest_process']:.0f} takes {line['slowest_process_ratio']:.1f} times the median"
            )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, text=text)
            return
        left_s = (self._total_steps - step) * (self._seconds_per_step or 0.0)
        waiting = line["seconds_data"] / line["seconds"]
        logger.info(
            "step %d/%d  %s  waiting for data %.0f %%  %s left",
            *(step, self._total_steps, text, 100 * waiting, format_seconds(left_s)),
        )

    def _start_progress(self, console: Console, first_step: int) -> None:
        if console.is_terminal:
            self._progress = Progress(
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._progress.add_task("", total=self._total_steps, completed=first_step, text="")
            self._progress.start()


def straggler_metrics(busy_s: Sequence[float]) -> dict[str, float]:
    """Find who takes longest for its own work, and how much longer than the median; nothing for one process.

    ``busy_s`` are the processes' seconds between two reports without what they waited for others.
    """
    if len(busy_s) < 2:
        return {}
    median, longest = statistics.median_low(busy_s), max(busy_s)  # of two processes the faster
    return {
        "seconds_busy_median": median,
        "seconds_busy_max": longest,
        "slowest_process": float(busy_s.index(longest)),
        "slowest_process_ratio": longest / max(median, 1e-9),
    }


def peak_memory_bytes(device: torch.device | None) -> int:
    """Measure the most memory held so far: by tensors on a GPU, else by this process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _start_wandb(project: str, folder: RunFolder) -> Any:
    """Start or go on with this folder's run; its id is kept in the folder."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"report.wandb-project {project!r} needs the wandb package, which is not installed; "
            "run `pip install wandb` or leave the option out"
        )
    id_file = folder.path / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:12])
    wandb = importlib.import_module("wandb")
    return wandb.init(
        project=project, id=id_file.read_text(), resume="allow", dir=str(folder.path), name=folder.path.name
    )
