"""Measures a training run's weights, raw and averaged, every so often, and keeps the best; whatever the task."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from engine.loop.training import Training
from finetune.config import steps_between_evaluations
from finetune.evaluation.log import WEIGHTS, EvaluationLog
from finetune.evaluation.results import write_results
from finetune.network.freezing import set_training_mode
from finetune.network.weights import as_trained, best_folder
from finetune.task import Results, Task

logger = logging.getLogger(__name__)


class Evaluations:
    """The evaluations of a training run; every process takes part in each."""

    def __init__(self, training: Training, *, task: Task) -> None:
        self._training, self._task = training, task
        steps_per_epoch = training.schedule.steps_per_epoch
        self._every = steps_between_evaluations(task.config.evaluation, steps_per_epoch=steps_per_epoch)
        on_main, folder = training.engine.is_main, training.folder.path
        self._log = EvaluationLog(folder, step=training.step, figure=task.best_by) if on_main else None
        self._last: dict[str, dict[str, Any]] = {}

    def run_if_due(self) -> None:
        """Measure all weights if this step asks for it; not those that a run goes back from."""
        step = self._training.step
        if (step % self._every == 0 or step == self._training.last_step) and self._training.check_finite():
            self._run()

    def finish(self) -> Results:
        """Write the results of the last and the best weights to ``evaluation.json`` (main process only)."""
        if not self._last:
            self._run()
        if self._log is None:
            return []
        results = [{**result, "name": f"last {weights}"} for weights, result in self._last.items()]
        for weights in self._last:
            best = self._log.best_result(weights)
            results += [{**best, "name": f"best {weights}"}] if best else []
        path = write_results(self._training.folder.path, results, classes=self._task.data.classes)
        logger.info("results: %s", path)
        return results

    def _run(self) -> None:
        averages = self._training.ema
        self._last = {}
        for weights in WEIGHTS if averages is not None else WEIGHTS[:1]:
            with averages.swap() if averages is not None and weights == "ema" else contextlib.nullcontext():
                self._measure_present(weights)

    def _measure_present(self, weights: str) -> None:
        """Measure the weights that are in the module now, and keep them if they are the best (collective)."""
        training, task, step = self._training, self._task, self._training.step
        folder = training.folder.path
        with self._evaluated_module() as network, self._noted(network):
            trained = as_trained(network, name=weights, step=step, metadata=training.metadata)
            evaluation = task.evaluator.evaluate(trained, predictions=folder / f"predictions-{weights}.json")
        logger.info("step %d, %s weights: %s", step, weights, evaluation.summary)
        self._last[weights] = result = {"name": weights, "step": step, **evaluation.result}
        is_best = self._log is not None and self._log.add(step=step, weights=weights, figures=evaluation.figures)
        if not training.engine.any(is_best):  # gathering the weights takes every process, so each must know
            return
        state = training.engine.full_state_dict()
        if self._log is not None:
            best = best_folder(folder, weights, step)
            task.write_best(best, metadata=training.metadata, state=state, step=step, weights=f"best {weights}")
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
        """Yield the network in evaluation mode: the trained one, or a copy where no process holds that as a whole."""
        engine = self._training.engine
        if engine.is_sharded:
            state: dict[str, Tensor] = engine.broadcast_object(engine.full_state_dict())
            network = self._task.build_bare(self._training.metadata)
            network.load_state_dict(state)
            yield network.to(engine.device).eval()
            return
        yield engine.module.eval()
        set_training_mode(engine.module)
