"""Everything around a training loop: resume, move, accumulate, update, report, save, stop.

The loop itself stays with the program that owns it (``pretrain/trainer.py``), where it reads like the algorithm. A
step is a pure function of its number, so the whole state is the weights, the optimizer's moments, the averaged
weights, one integer, and the list of micro-batches that are left out (``engine/faults/non_finite_recovery.py``). The
numbers of the steps may go back: what was not finite is done again without the micro-batch that was at fault.
"""

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.store import Checkpoint, CheckpointStore
from engine.config import micro_batches_of
from engine.distributed.engine import Engine
from engine.errors import Stopped, waiting_for
from engine.faults.non_finite_recovery import NonFiniteRecovery
from engine.faults.watchdog import Watchdog
from engine.loop.bad_samples import BadSamples
from engine.loop.device_feed import DeviceFeed
from engine.loop.ema import SlicedEma
from engine.loop.optimizer import Schedule, build_optimizer, say_plan
from engine.loop.resume import InitialState, find_checkpoint
from engine.loop.sections import ReadCost, Sections
from engine.loop.step_sums import COUNT, NORMS, StepSums
from engine.loop.stop_requests import StopRequests
from engine.randomness import torch_seed
from engine.run.folder import RunFolder
from engine.run.reporting import Reporter, straggler_metrics
from engine.terms import MicroBatchKey

logger = logging.getLogger(__name__)


class Training:
    """One run's state and the machinery around its loop.

    Args:
        config: the run's config; its sections say what happens when.
        engine: the processes, already joined.
        folder: the run folder, already locked.
        model: the network with its first weights; a checkpoint found in the run folder replaces them.
        steps_per_epoch: optimizer steps in one pass over the samples.
        metadata: JSON values kept in every checkpoint, such as the architecture; those of its data must not change.
        shard_of: names the shard of a sample id, for the record of bad samples.
        per_forward: micro-batches that the model takes in one forward pass, for which it returns a loss each.
        fetch_patience_s: seconds after which reading gives up by itself; the watchdog waits as long.
    """

    def __init__(
        self,
        config: Sections,
        *,
        engine: Engine,
        folder: RunFolder,
        model: nn.Module,
        steps_per_epoch: int,
        metadata: Mapping[str, Any],
        shard_of: Callable[[int], str],
        per_forward: int = 1,
        fetch_patience_s: float = 0.0,
    ) -> None:
        self.engine, self.folder, self.metadata, self._config = engine, folder, dict(metadata), config
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
        self.recovery = NonFiniteRecovery(
            engine=engine,
            folder=folder,
            shard_of=shard_of,
            num_micro_batches=engine.world_size * len(self.micro_batches),
            max_rewinds=config.run.max_rewinds,
            precision=config.distributed.precision,
        )
        self.watchdog = Watchdog(
            folder.path, rank=engine.rank, world_size=engine.world_size, timeout_s=config.run.stall_timeout_s
        )
        self.step = 0
        """Optimizer steps that are done."""
        self.stopped = False
        """Whether the run was asked to end early and has saved."""
        self._shard_of, self._per_forward = shard_of, per_forward
        self._fetch_patience_s = fetch_patience_s
        self._feed = DeviceFeed(engine.device, micro_batches=self.micro_batches, last_step=self.last_step)
        self._fetched: list[tuple[MicroBatchKey, dict[str, Any]]] = []
        self.ema: SlicedEma | None = None
        self._initial_state: InitialState | None = None
        if engine.is_main:
            say_plan(self.schedule, model, device=engine.device)
        self._restore(model)
        self.reporter = Reporter(
            folder,
            config.report,
            total_steps=self.schedule.total_steps,
            is_main=engine.is_main,
            first_step=self.step,
            device=engine.device,
        )
        self._stop_requests = StopRequests(engine, folder)
        self._first_step = self.step

    def _restore(self, model: nn.Module) -> None:
        """Load the newest checkpoint, or the one to branch from, around preparing the engine."""
        checkpoint = self._find_checkpoint()
        # The type comes first: fp64 weights must not pass through fp32.
        self.engine.place(model)
        # Weights go into the whole model, before ZeRO cuts it into parts, and moments into the parts.
        if checkpoint is not None:
            checkpoint.load_weights(model)
        self.engine.prepare(
            model,
            self.optimizer,
            micro_batches=len(self.micro_batches),
            micro_batch_size=self._config.data.micro_batch_size,
            clip_grad_norm=self._config.optimizer.clip_grad_norm,
        )
        # The average starts at the weights that were just loaded.
        if self._config.optimizer.ema_decay is not None:
            self.ema = SlicedEma(self.engine, decay=self._config.optimizer.ema_decay)
        if checkpoint is None:
            self._initial_state = InitialState(self.engine)
        else:
            self.engine.load_optimizer(checkpoint.read, optimizer_steps=int(checkpoint.state["step"]))
            if self.ema is not None:
                self.ema.load(checkpoint.read)
            # A run that branches off leaves out what is not finite in its own steps, not what the other one left out.
            if checkpoint.path.parent == self.folder.checkpoints:
                self.recovery.load(checkpoint.state)
            logger.info("resuming after step %d from %s", checkpoint.state["step"], checkpoint.path)
        self._begin({} if checkpoint is None else checkpoint.state)

    def _begin(self, state: Mapping[str, Any]) -> None:
        """Set what is counted to a checkpoint's state, or to the start; weights and moments are loaded already."""
        self.step = self._saved_step = self._finite_until = int(state.get("step", 0))
        self._must_go_back = False
        self._sums, self._read_cost = StepSums(), None
        self._grad_norm: Tensor | None = None
        self._bad_samples = BadSamples(
            self.folder.path,
            engine=self.engine,
            shard_of=self._shard_of,
            max_share=self._config.data.max_bad_share,
            steps_done=self.step,
            total=state.get("bad_samples", 0),
            unreported=state.get("bad_samples_unreported", 0),
        )
        if self.recovery.skipped:
            self._feed.restart(first_step=self.step, skip=self.recovery.skipped)
        if self.engine.is_main:
            self.folder.cut_metrics(self.step)

    def _go_back(self) -> None:
        """Do the steps since the last checkpoint again: to find what was not finite, or without it (collective)."""
        self.watchdog.note("going back", step=self.step, outside=True)
        self.store.wait()
        if self.recovery.has_culprits:
            self.recovery.leave_out_culprits()
        checkpoint = self._find_checkpoint()
        state = {} if checkpoint is None else checkpoint.state
        start = checkpoint or self._initial_state
        assert start is not None, "a run that resumed has a checkpoint to go back to"
        self.engine.load_state(start.read, optimizer_steps=int(state.get("step", 0)))
        if self.ema is not None:
            self.ema.load(start.read)
        self._begin(state)
        self.reporter.rewind(self.step)
        self._feed.restart(first_step=self.step, skip=self.recovery.skipped)
        self._first_step = self.step
        self._stop_requests.restart(self.step)
        logger.warning("going on after step %d", self.step)

    def _find_checkpoint(self) -> Checkpoint | None:
        """Find the newest whole checkpoint, or the one to branch from."""
        return find_checkpoint(
            self.store, engine=self.engine, branch_from=self._config.run.branch_from, metadata=self.metadata
        )

    @property
    def last_step(self) -> int:
        """Number of steps that the whole run takes."""
        return self.schedule.total_steps

    def groups(self) -> list[range]:
        """Divide this process's micro-batches of a step into groups that share one forward pass.

        During the search for a micro-batch that is not finite each runs alone, to be told from the others; nothing of
        that is saved.
        """
        size = 1 if self._runs_alone else self._per_forward
        return [self.micro_batches[first : first + size] for first in range(0, len(self.micro_batches), size)]

    @property
    def _runs_alone(self) -> bool:
        """Whether micro-batches that share a forward pass otherwise are run one by one."""
        return self.recovery.searching and self._per_forward > 1

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps still to do; ends early, with a checkpoint, when asked to stop.

        Where something was not finite a number comes again (``engine/faults/non_finite_recovery.py``).
        """
        self._first_step = self.step
        self._stop_requests.restart(self.step)
        self.folder.at_close(self.watchdog.stop)
        with self._stop_requests, self.reporter, self.watchdog:
            while not self.stopped:
                was_finite = self.recovery.begin(self.step)
                if was_finite and self._per_forward > 1:
                    # What was repeated ran one by one: other sums than in a run that is left alone.
                    self._go_back()
                    continue
                if self.step >= self.last_step:
                    break
                yield self.step
                if self._must_go_back:
                    self._go_back()
                else:
                    self.stopped = self._stop_requests.agreed(self.step)
            self._end(stopped_by=(self._stop_requests.reason or "") if self.stopped else None)

    @contextlib.contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """Save the steps that are done where a signal ends a wait within, in training or in an evaluation.

        With several processes the others would have to take part: there the last checkpoint stays the last.
        """
        try:
            yield
        except Stopped as stop:
            self._bad_samples.forget(self.step)
            if self.engine.world_size == 1:
                self._end(stopped_by=signal.Signals(stop.number).name)
            self.store.wait()  # for one that is being written
            stop.notes.append(f"the last checkpoint is that of step {self._saved_step}")
            raise

    def _end(self, *, stopped_by: str | None) -> None:
        """Save what is not saved yet, and write down who stopped the run early (collective)."""
        if self.step != self._saved_step and not self._runs_alone:
            self.save()
        self.store.wait()
        if stopped_by is not None and self.engine.is_main:
            signalled_at = self._stop_requests.signalled_at
            self.folder.note_stopped(self._saved_step, reason=stopped_by, signalled_at=signalled_at)

    def fetch(self, batches: Iterator[dict[str, Any]], *, key: MicroBatchKey) -> dict[str, Any]:
        """Take the next micro-batch of this process, ``key`` = (step, micro_batch), on the device.

        For one that is left out another comes, whose loss has weight zero.
        """
        # of the first step, too: only its forward pass takes long
        self.watchdog.note("fetch", step=self.step, at_least_s=self._fetch_patience_s)
        with waiting_for(f"data, micro-batch {key[1]} of step {key[0]}"):
            batch = self._feed.take(batches, key=key, timed=self.reporter.timed)
        cost: ReadCost | None = batch.pop("reading", None)
        if cost is not None:  # nothing was read for one that takes the place of another
            self._read_cost = cost if self._read_cost is None else self._read_cost + cost
        self._bad_samples.note(batch["bad"], key=key)
        self._fetched.append((key, batch))
        return batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on what was fetched since the last backward pass.

        The seed of the first micro-batch drives dropout and drop path.
        """
        self._watch("forward")
        with self.reporter.timed("compute"):
            torch.manual_seed(torch_seed(self._config.run.seed, "model", *self._fetched[0][0]))
            return self.engine.forward(*args, last=self._is_last, **kwargs)

    def backward(self, loss: Tensor, **metrics: Tensor) -> None:
        """Add the gradients of the micro-batches just run to the step's mean.

        Args:
            loss: one per micro-batch, or a 0-d tensor for one.
            metrics: of a single micro-batch, averaged into the next report.
        """
        self._watch("backward")
        fetched, last, losses = self._fetched, self._is_last, loss.view(-1)
        self._fetched = []
        weights = [self.recovery.weight(key) for key, _ in fetched]
        for each, weight in zip(losses.unbind(), weights, strict=True):
            self._sums.add({"loss": each, **metrics}, counts=weight > 0)
        weighted = losses if set(weights) == {1} else losses * losses.new_tensor(weights)
        with self.reporter.timed("communication" if last and self.engine.world_size > 1 else "compute"):
            self.engine.backward(weighted.sum(), last=last)
        for (key, batch), each in zip(fetched, losses.unbind(), strict=True):
            self.recovery.examine(key, each, batch)

    @property
    def _is_last(self) -> bool:
        """Whether the last micro-batch of this process and step has been fetched."""
        return self._fetched[-1][0][1] == self.micro_batches[-1]

    def update(self) -> None:
        """Clip, step the optimizer with this step's learning rates, move the averaged weights, count the step."""
        self._watch("update")
        # What the search has found is written down now: after the update the weights that it met are gone.
        self.recovery.conclude(self.step, weights=self.engine.state_slices, metadata=self.metadata)
        with self.reporter.timed("compute"):
            lrs, skipped = self.schedule.lrs(self.optimizer, self.step), self.recovery.skipped_in(self.step)
            self._grad_norm = self.engine.step(lrs, skipped=skipped)
            self._sums.add_step(self._grad_norm)
            if self.ema is not None:
                self.ema.update()
        self.step += 1
        self._must_go_back = self.recovery.has_culprits

    def report(self) -> None:
        """Write a line of metrics if it is due; between reports, saves and stop checks nothing waits for the device."""
        is_due = self.step % self._config.report.every_steps == 0 or self.step == self.last_step
        if is_due and not self._must_go_back:
            self._watch("report")
            self._report()
        self.watchdog.note("between steps", step=self.step, outside=True)

    def _report(self) -> None:
        """Join the processes' sums in one collective and write their means, unless something is not finite."""
        metrics, busy_s = self._sums.means(self.engine, own=self.reporter.busy_s)
        count, norms = metrics.pop(COUNT), metrics.pop(NORMS)
        if not self._is_finite(metrics["loss"], norms):
            return
        self._settle_bad_samples()
        metrics["bad_samples"] = float(self._bad_samples.unreported)
        metrics["bad_samples_total"] = float(self._bad_samples.total)
        metrics["skipped_micro_batches"] = float(len(self.recovery.skipped))
        metrics["grad_norm"] = float(self._grad_norm) if self._grad_norm is not None else 0.0
        metrics["lr"] = self.schedule.lr(self.step - 1)
        metrics.update(self._read_cost.metrics() if self._read_cost is not None else {})
        metrics.update(straggler_metrics(busy_s))
        images = round(count * self._config.data.micro_batch_size * self.engine.world_size)
        self.reporter.report(self.step, metrics, num_images=images)
        self._sums, self._read_cost, self._bad_samples.unreported = StepSums(), None, 0

    def save_if_due(self) -> bool:
        """Start writing a checkpoint where one is due; return whether it is one that is kept for good."""
        run = self._config.run
        if self._must_go_back or self._runs_alone or self.step % run.save_every_steps or not self.save():
            return False
        return run.keep_every_steps is not None and self.step % run.keep_every_steps == 0

    def save(self) -> bool:
        """Start writing a checkpoint of the state after the last full step, if that is finite; return whether it is."""
        self.watchdog.note("save", step=self.step, outside=True)
        if not self.check_finite():
            return False
        self._settle_bad_samples()
        slices = self.engine.state_slices()
        if self.ema is not None:
            slices += self.ema.slices()
        counts = {"bad_samples": self._bad_samples.total, "bad_samples_unreported": self._bad_samples.unreported}
        self.store.save(self.step, slices, {"step": self.step, **counts, **self.recovery.state(), **self.metadata})
        # Saving waited for the checkpoint before this one: if there is one, the run never goes back to its start again.
        if self._saved_step > 0:
            self._initial_state = None
        self._saved_step = self.step
        return True

    def check_finite(self) -> bool:
        """Whether the run goes on from these weights rather than back (collective; waits for the device)."""
        if self._sums.num_steps and not self._must_go_back:
            metrics, _ = self._sums.means(self.engine)
            self._is_finite(metrics["loss"], metrics[NORMS])
        return not self._must_go_back

    def _settle_bad_samples(self) -> None:
        """Write down and count the samples that others replaced; too many of them end the run on all processes."""
        self._bad_samples.settle(self.step * self._config.data.batch_size)

    def _is_finite(self, loss: float, norms: float) -> bool:
        """Whether the steps so far were; otherwise nothing of them is reported or saved, and the run goes back."""
        if math.isfinite(loss) and math.isfinite(norms):
            self._finite_until = self.step
            return True
        if not self.recovery.has_culprits:
            self.recovery.start_search(range(self._finite_until, self.step), loss=loss, norm=norms)
        self._must_go_back = True
        return False

    def note_progress(self, phase: str) -> None:
        """Tell the watchdog that work outside steps, such as an evaluation, goes on; once a batch is often enough."""
        self.watchdog.note(phase, step=self.step, outside=True)

    def _watch(self, phase: str) -> None:
        """Tell the watchdog what begins; the first step after a start may take long."""
        self.watchdog.note(phase, step=self.step, outside=self.step == self._first_step)
