"""Measures a training run's weights, raw and averaged, every so often, and keeps the best; whatever the task."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from engine.loop.training import Training
from finetune.config import EvaluationTimes, steps_between_evaluations
from finetune.evaluation.log import WEIGHTS, AccuracyLog
from finetune.evaluation.results import write_results
from finetune.network.freezing import set_training_mode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one evaluation found."""

    words: str
    """For the terminal."""
    figures: dict[str, float | None]
    """For a line of ``accuracy.jsonl``."""
    result: dict[str, Any]
    """All of it, as JSON values."""


class Measure(Protocol):
    """How the networks of a task are measured and kept."""

    best_by: str
    """Name of the figure that makes weights the best; higher is better."""
    classes: tuple[str, ...] | None
    """Names of the classes, for ``evaluation.json``."""

    def measure(self, network: nn.Module, *, weights: str) -> Measured:
        """Return what a network in evaluation mode does (collective); ``weights`` is raw or ema."""
        ...

    def rebuild(self) -> nn.Module:
        """Return the network without the trained weights, for where the trained one is in pieces."""
        ...

    def keep(
        self, folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Write the weights of ``state`` as the best."""
        ...


class Evaluations:
    """The evaluations of a training run; every process takes part in each."""

    def __init__(self, training: Training, *, times: EvaluationTimes, of: Measure) -> None:
        self._training, self._of = training, of
        self._every = steps_between_evaluations(times, steps_per_epoch=training.schedule.steps_per_epoch)
        on_main, folder = training.engine.is_main, training.folder.path
        self._log = AccuracyLog(folder, step=training.step, figure=of.best_by) if on_main else None
        self._last: dict[str, dict[str, Any]] = {}

    def measure_if_due(self) -> None:
        """Measure all weights if this step asks for it; not those that a run goes back from."""
        step = self._training.step
        if (step % self._every == 0 or step == self._training.last_step) and self._training.check_finite():
            self._measure()

    def finish(self) -> list[dict[str, Any]]:
        """Return the results of the last and the best weights, written to ``evaluation.json`` (main process only)."""
        if not self._last:
            self._measure()
        if self._log is None:
            return []
        results = [{**result, "name": f"last {weights}"} for weights, result in self._last.items()]
        for weights in self._last:
            best = self._log.best_result(weights)
            results += [{**best, "name": f"best {weights}"}] if best else []
        logger.info("results: %s", write_results(self._training.folder.path, results, classes=self._of.classes))
        return results

    def _measure(self) -> None:
        averages = self._training.ema
        self._last = {}
        for weights in WEIGHTS if averages is not None else WEIGHTS[:1]:
            with averages.swap() if averages is not None and weights == "ema" else contextlib.nullcontext():
                self._measure_present(weights)

    def _measure_present(self, weights: str) -> None:
        """Measure the weights that are in the module now, and keep them if they are the best (collective)."""
        training, step = self._training, self._training.step
        with self._evaluated_module() as network, self._noted(network):
            measured = self._of.measure(network, weights=weights)
        logger.info("step %d, %s weights: %s", step, weights, measured.words)
        self._last[weights] = result = {"name": weights, "step": step, **measured.result}
        is_best = self._log is not None and self._log.add(step=step, weights=weights, figures=measured.figures)
        if not training.engine.any(is_best):
            return
        state = training.engine.full_state_dict()
        if self._log is not None:
            folder = self._log.best_folder(weights, step)
            self._of.keep(folder, described=training.metadata, state=state, step=step, weights=weights)
            self._log.keep(weights, step, result=result)

    @contextlib.contextmanager
    def _noted(self, network: nn.Module) -> Iterator[None]:
        """Show progress whenever a part of the network has run, whatever of it the task calls."""
        parts = list(network.children())
        hooks = [part.register_forward_hook(lambda *_: self._training.note_progress("evaluation")) for part in parts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def _evaluated_module(self) -> Iterator[nn.Module]:
        """Yield a network in evaluation mode with the present weights: the trained one, or a copy where it is in pieces."""
        engine = self._training.engine
        if engine.is_sharded:
            state: dict[str, Tensor] = engine.broadcast_object(engine.full_state_dict())
            network = self._of.rebuild()
            network.load_state_dict(state)
            yield network.to(engine.device).eval()
            return
        yield engine.module.eval()
        set_training_mode(engine.module)
