"""Everything around a training loop: resume, move, accumulate, update, report, save, stop.

The loop itself stays with the program that owns it (``pretrain/trainer.py``, ``finetune/trainer.py``), where it reads like
the algorithm. A step is a pure function of its number, so the whole state is the weights, the optimizer's moments, the
averaged weights and one integer.
"""

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.bad_samples import BadSamples
from engine.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig, micro_batches_of
from engine.distributed import Engine
from engine.ema import SlicedEma
from engine.optimizer import Schedule, build_optimizer
from engine.randomness import torch_seed
from engine.reporting import Reporter
from engine.run_folder import RunFolder

logger = logging.getLogger(__name__)

SAME_DATA = ("manifest_digest", "shards_per_folder")
"""What a checkpoint says of its data that may not change in a run."""
STOP_CHECK_S = 5.0
"""Seconds between the moments when several processes agree on whether to stop."""


class DataSection(Protocol):
    """The part of a data config that the loop needs: the global batch, and how much may be wrong with it."""

    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def micro_batch_size(self) -> int: ...  # noqa: D102
    @property
    def max_bad_share(self) -> float: ...  # noqa: D102


class Sections(Protocol):
    """The config sections that every training program has."""

    @property
    def data(self) -> DataSection: ...  # noqa: D102
    @property
    def optimizer(self) -> OptimizerConfig: ...  # noqa: D102
    @property
    def run(self) -> RunConfig: ...  # noqa: D102
    @property
    def report(self) -> ReportConfig: ...  # noqa: D102
    @property
    def distributed(self) -> DistributedConfig: ...  # noqa: D102


class Cost(Protocol):
    """What getting micro-batches cost: adds up, and names its figures for a report."""

    def __add__(self, other: Any, /) -> "Cost": ...
    def metrics(self) -> dict[str, float]: ...  # noqa: D102


class Training:
    """One run's state and the machinery around its loop.

    Args:
        config: the run's config; its sections say what happens when.
        engine: the processes, already joined.
        folder: the run folder, already locked.
        model: the network with its first weights; a checkpoint found in the run folder replaces them.
        steps_per_epoch: optimizer steps in one pass over the samples.
        describe: JSON values to keep in every checkpoint, such as the architecture; ``SAME_DATA`` must stay the same.
        shard_of: gives the shard of a sample id, for the ledger of bad samples.
    """

    def __init__(
        self,
        config: Sections,
        *,
        engine: Engine,
        folder: RunFolder,
        model: nn.Module,
        steps_per_epoch: int,
        describe: Mapping[str, Any],
        shard_of: Callable[[int], str],
    ) -> None:
        self.engine, self.folder, self.describe, self._config = engine, folder, dict(describe), config
        data = config.data
        self.micro_batches = micro_batches_of(
            engine.rank,
            world_size=engine.world_size,
            batch_size=data.batch_size,
            micro_batch_size=data.micro_batch_size,
        )
        self.schedule = Schedule(config.optimizer, batch_size=data.batch_size, steps_per_epoch=steps_per_epoch)
        self.optimizer = build_optimizer(model, config.optimizer, batch_size=data.batch_size)
        self.store = CheckpointStore(
            folder.checkpoints,
            rank=engine.rank,
            world_size=engine.world_size,
            keep_last=config.run.keep_last,
            keep_every_steps=config.run.keep_every_steps,
        )
        self.step = 0
        self._saved_step = 0
        self.ema: SlicedEma | None = None
        restored = self._restore(model)
        self._bad = BadSamples(
            folder.path,
            engine=engine,
            shard_of=shard_of,
            max_share=data.max_bad_share,
            steps_done=self.step,
            total=restored.get("bad_samples", 0),
        )
        self.reporter = Reporter(
            folder,
            config.report,
            total_steps=self.schedule.total_steps,
            is_main=engine.is_main,
            first_step=self.step,
            device=engine.device,
        )
        self._sums: dict[str, Tensor] = {}
        self._num_summed = 0
        self._num_bad = restored.get("bad_samples_unreported", 0)
        self._reading: Cost | None = None
        self._grad_norm: Tensor | None = None
        self._stop_signal: str | None = None
        self._stop_asked: float | None = None
        self.stopped = False
        self._started, self._first_step, self._next_stop_check = 0.0, self.step, 0

    def _restore(self, model: nn.Module) -> Mapping[str, Any]:
        """Load the newest checkpoint, or the one to branch from, around preparing the engine; return its state."""
        checkpoint = self._find_checkpoint()
        self.engine.place(model)  # first, so that fp64 weights are not read through fp32
        if checkpoint is not None:
            checkpoint.load_weights(model)
        self.engine.prepare(
            model,
            self.optimizer,
            micro_batches=len(self.micro_batches),
            micro_batch_size=self._config.data.micro_batch_size,
            clip_grad_norm=self._config.optimizer.clip_grad_norm,
        )
        if self._config.optimizer.ema_decay is not None:
            self.ema = SlicedEma(self.engine, decay=self._config.optimizer.ema_decay)
        if checkpoint is not None:
            self._load_optimizer(checkpoint)
        if self.engine.is_main:
            self.folder.cut_metrics(self.step)
        return {} if checkpoint is None else checkpoint.state

    def _find_checkpoint(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or the one to branch from; rank 0 chooses and checks it for all."""
        found: Path | None = None
        if self.engine.is_main:
            newest = self.store.latest()
            found = newest.path if newest is not None else self._config.run.branch_from
        found = self.engine.broadcast_object(found)
        if found is None:
            return None
        checkpoint = open_checkpoint(found, verify=self.engine.is_main)
        if found.parent == self.folder.checkpoints:
            self._check_same_data(checkpoint)
        return checkpoint

    def _check_same_data(self, checkpoint: Checkpoint) -> None:
        """Refuse to go on with other samples; where they lie may change."""
        for name in SAME_DATA:
            stored, asked = checkpoint.state.get(name), self.describe.get(name)
            if stored is not None and stored != asked:
                raise ValueError(
                    f"{checkpoint.path} was trained on other data than data.shards: {name.replace('_', ' ')} stored {stored}, "
                    f"asked {asked}; give the folders with the same content in the same order, another --run.folder, or "
                    f"start a new run from this checkpoint with --run.branch-from"
                )

    def _load_optimizer(self, checkpoint: Checkpoint) -> None:
        self.step = self._saved_step = int(checkpoint.state["step"])
        self.engine.load_optimizer(checkpoint.read, optimizer_steps=self.step)
        if self.ema is not None:
            self.ema.load(checkpoint.read)
        logger.info("resuming after step %d from %s", self.step, checkpoint.path)

    @property
    def last_step(self) -> int:
        """Number of steps that the whole run takes."""
        return self.schedule.total_steps

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps still to do; ends early, with a checkpoint, when asked to stop."""
        self._started, self._first_step = time.monotonic(), self.step
        with _stop_signals(self._note_signal), self.reporter:
            while self.step < self.last_step and not self.stopped:
                yield self.step
                self._stop_if_asked()
            if self.step != self._saved_step:
                self.save()
            self.store.wait()
            if self.stopped and self.engine.is_main:
                self.folder.note_stopped(self.step, reason=self._stop_reason, asked=self._stop_asked)

    def fetch(self, batches: Iterator[dict[str, Any]], *, key: tuple[int, int]) -> dict[str, Any]:
        """Wait for the next micro-batch of this process, ``key`` = (step, micro_batch), and move it to the device."""
        with self.reporter.timed("data"):
            batch = next(batches)
        reading: Cost = batch.pop("reading")
        self._reading = reading if self._reading is None else self._reading + reading
        self._bad.note(batch["bad"], key=key)
        with self.reporter.timed("transfer"):
            return {key: _to_device(value, self.engine.device) for key, value in batch.items()}

    def forward(self, *args: Any, key: tuple[int, int], **kwargs: Any) -> Any:
        """Run the model on the micro-batch ``key`` = (step, micro_batch), whose own seed drives dropout and drop path."""
        with self.reporter.timed("compute"):
            torch.manual_seed(torch_seed(self._config.run.seed, "model", *key))
            return self.engine.forward(*args, **kwargs)

    def backward(self, loss: Tensor, **metrics: Tensor) -> None:
        """Add one micro-batch's gradient to the step's mean; ``metrics`` are averaged into the next report."""
        with self.reporter.timed("compute"):
            for name, value in {"loss": loss, **metrics}.items():
                self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._num_summed += 1
            last = self._num_summed % len(self.micro_batches) == 0
        with self.reporter.timed("communication" if last and self.engine.world_size > 1 else "compute"):
            self.engine.backward(loss, last=last)

    def update(self) -> None:
        """Clip, step the optimizer with this step's learning rates, move the averaged weights, count the step."""
        with self.reporter.timed("compute"):
            self._grad_norm = self.engine.step(self.schedule.lrs(self.optimizer, self.step))
            if self.ema is not None:
                self.ema.update()
        self.step += 1

    def report(self) -> None:
        """Write one line of metrics if it is due; between reports, saves and stop checks nothing waits for the device."""
        if self.step % self._config.report.every_steps and self.step != self.last_step:
            return
        means = {name: value / self._num_summed for name, value in self._sums.items()}
        metrics = self.engine.average(means)
        self._check_finite(metrics)
        self._settle_bad()
        metrics["bad_samples"], metrics["bad_samples_total"] = float(self._num_bad), float(self._bad.total)
        metrics["grad_norm"] = float(self._grad_norm) if self._grad_norm is not None else 0.0
        metrics["lr"] = self.schedule.lr(self.step - 1)
        metrics.update(self._reading.metrics() if self._reading is not None else {})
        images = self._num_summed * self._config.data.micro_batch_size * self.engine.world_size
        self.reporter.report(self.step, metrics, num_images=images)
        self._sums, self._num_summed, self._num_bad, self._reading = {}, 0, 0, None

    def save_if_due(self) -> bool:
        """Start writing a checkpoint where one is due; return whether it is one that is kept for good."""
        run = self._config.run
        if self.step % run.save_every_steps:
            return False
        self.save()
        return run.keep_every_steps is not None and self.step % run.keep_every_steps == 0

    def save(self) -> None:
        """Start writing a checkpoint of the state after the last full step, if that is finite."""
        if self._sums:
            self._check_finite(self.engine.average({"loss": self._sums["loss"] / self._num_summed}))
        self._settle_bad()
        slices = self.engine.owned_slices()
        if self.ema is not None:
            slices += self.ema.slices()
        bad = {"bad_samples": self._bad.total, "bad_samples_unreported": self._num_bad}
        self.store.save(self.step, slices, {"step": self.step, **bad, **self.describe})
        self._saved_step = self.step

    def _settle_bad(self) -> None:
        """Write down and count the samples that others took the places of; too many of them end the run on all processes."""
        self._num_bad += self._bad.settle(self.step * self._config.data.batch_size)

    def _check_finite(self, metrics: Mapping[str, float]) -> None:
        """Stop the run where the loss is no number, before such weights are saved over good ones."""
        norm = float(self._grad_norm) if self._grad_norm is not None else 0.0
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            raise ValueError(
                f"the loss is {metrics['loss']} and the gradient norm {norm} in the steps up to {self.step}: nothing of them was "
                f"saved; start again to go on from the last checkpoint, with a lower optimizer.base-lr or "
                f"optimizer.clip-grad-norm in a run that branches from it, and look at the data if it recurs"
            )

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop_signal = signal.Signals(number).name
        self._stop_asked = self._stop_asked or time.time()

    @property
    def _stop_reason(self) -> str:
        return self._stop_signal or "the STOP file"

    def _stop_if_asked(self) -> None:
        """Agree among the processes on stopping, about every ``STOP_CHECK_S`` seconds.

        Rank 0 says at which step all look next: launchers give a signalled process half a minute before they kill it.
        """
        if self.engine.world_size > 1 and self.step < self._next_stop_check:
            return
        asked = self._stop_signal is not None or (self.engine.is_main and self.folder.stop_requested())
        if self.engine.any(asked):
            self.stopped = True
            logger.warning("stopping after step %d, as asked by %s", self.step, self._stop_reason)
        per_step = (time.monotonic() - self._started) / (self.step - self._first_step)
        self._next_stop_check = self.engine.broadcast_object(self.step + max(1, int(STOP_CHECK_S / per_step)))


class _stop_signals:  # noqa: N801
    """Within it, SIGINT, SIGTERM and SIGUSR2 only ask for a stop; a second SIGINT interrupts as usual.

    Schedulers send SIGUSR2 (NCCL takes SIGUSR1) and SIGTERM, often more than once.
    """

    def __init__(self, note: Callable[[int, FrameType | None], None]) -> None:
        self._note = note
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number, frame)
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if dataclasses.is_dataclass(value) and hasattr(value, "to"):
        return value.to(device)  # pyright: ignore[reportAttributeAccessIssue]
    return value
