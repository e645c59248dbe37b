"""Measures the accuracy of a run's weights, raw and averaged, and keeps the best."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from engine.pixels import Pixels
from engine.training import Training
from finetune.accuracy_log import WEIGHTS, AccuracyLog
from finetune.classifier_folder import write_classifier
from finetune.config import FinetuneConfig, steps_between_evaluations
from finetune.evaluate import evaluate, evaluation_images, forward_of
from finetune.freezing import set_training_mode
from finetune.labelled_shards import LabelledShards
from finetune.network import build_plain
from finetune.results import Result, entry, write_results
from finetune.scores import Scores
from finetune.start import Start

logger = logging.getLogger(__name__)


class Accuracy:
    """Runs the evaluations of a training run; every process takes part in each."""

    def __init__(
        self, config: FinetuneConfig, *, training: Training, start: Start, labelled: LabelledShards, pixels: Pixels
    ) -> None:
        self._config, self._training, self._start, self._labelled = config, training, start, labelled
        self._pixels = pixels
        self._every = steps_between_evaluations(config.evaluation, steps_per_epoch=training.schedule.steps_per_epoch)
        self._log = AccuracyLog(training.folder.path, step=training.step) if training.engine.is_main else None
        self._last: dict[str, dict[str, Any]] = {}

    def measure_if_due(self) -> None:
        """Measure all weights if this step asks for it."""
        step = self._training.step
        if step % self._every == 0 or step == self._training.last_step:
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
        path = write_results(self._training.folder.path, results, classes=self._labelled.classes)
        logger.info("results: %s", path)
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
        with self._evaluated_module() as network:
            scores = self._scores(network)
        figures = (step, weights, 100 * scores.top1, 100 * scores.top5, scores.loss, scores.num_images)
        logger.info("step %d, %s weights: top-1 %.2f %%, top-5 %.2f %%, loss %.4f on %d images", *figures)
        result = entry(Result(name=weights, step=step, scores=scores), classes=self._labelled.classes)
        self._last[weights] = result
        is_best = self._log is not None and self._log.add(step=step, weights=weights, figures=scores.summary())
        if not training.engine.any(is_best):
            return
        state = training.engine.full_weights()
        if self._log is not None:
            folder = self._log.best_folder(weights, step)
            described = training.describe
            write_classifier(folder, described=described, state=state, step=step, weights=f"best {weights}")
            self._log.keep(weights, step, result=result)

    def _scores(self, network: nn.Module) -> Scores:
        config, engine, val = self._config, self._training.engine, self._labelled.val
        return evaluate(
            forward_of(network, self._pixels, engine=engine),
            evaluation_images(config, val, img_size=self._start.img_size, engine=engine),
            num_classes=self._labelled.num_classes,
            num_samples=val.num_samples,
            engine=engine,
        )

    @contextlib.contextmanager
    def _evaluated_module(self) -> Iterator[nn.Module]:
        """Yield a network in evaluation mode with the present weights: the trained one, or a copy where it is in pieces."""
        engine = self._training.engine
        if self._config.distributed.zero_stage == 3 and engine.kind == "deepspeed":
            state: dict[str, Tensor] = engine.broadcast_object(engine.full_weights())
            network = build_plain(self._start, method=self._config.task.method, num_classes=self._labelled.num_classes)
            network.load_state_dict(state)
            yield network.to(engine.device).eval()
            return
        yield engine.module.eval()
        set_training_mode(engine.module)
