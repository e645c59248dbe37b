"""Measures the label maps of a run's weights, raw and averaged, and keeps the best."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from engine.durable import fsync_folder
from engine.training import Training
from finetune.accuracy_log import WEIGHTS, AccuracyLog
from finetune.freezing import set_training_mode
from finetune.results import write_results
from finetune.segmentation.config import SegmentConfig, steps_between_evaluations
from finetune.segmentation.confusion import SegmentScores, as_json
from finetune.segmentation.evaluation import evaluate
from finetune.segmentation.labelled_shards import LabelledShards
from finetune.segmentation.segmenter import Segmenter, bare_segmenter
from finetune.start import Start

logger = logging.getLogger(__name__)

BEST_WEIGHTS = "segmenter.safetensors"


class Quality:
    """Runs the evaluations of a training run; every process takes part in each."""

    def __init__(self, config: SegmentConfig, *, training: Training, start: Start, labelled: LabelledShards) -> None:
        self._config, self._training, self._start, self._labelled = config, training, start, labelled
        self._every = steps_between_evaluations(config.evaluation, steps_per_epoch=training.schedule.steps_per_epoch)
        is_main = training.engine.is_main
        self._log = AccuracyLog(training.folder.path, step=training.step, figure="miou") if is_main else None
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
        with self._evaluated_module() as segmenter:
            scores = self._scores(segmenter)
        figures = (
            step,
            weights,
            100 * scores.miou,
            100 * scores.pixel_accuracy,
            scores.num_images,
            scores.images_per_s,
        )
        logger.info("step %d, %s weights: mIoU %.2f %%, pixel accuracy %.2f %% on %d images, %.2f images/s", *figures)
        self._last[weights] = as_json(scores, classes=self._labelled.classes, name=weights, step=step)
        is_best = self._log is not None and self._log.add(step=step, weights=weights, figures=scores.summary())
        if not training.engine.any(is_best):
            return
        state = training.engine.full_weights()
        if self._log is not None:
            _write_weights(self._log.best_folder(weights, step), state)
            self._log.keep(weights, step, result=self._last[weights])

    def _scores(self, segmenter: Segmenter) -> SegmentScores:
        labelled, engine = self._labelled, self._training.engine
        return evaluate(self._config, segmenter, labelled.val, num_classes=labelled.num_classes, engine=engine)

    @contextlib.contextmanager
    def _evaluated_module(self) -> Iterator[Any]:
        """Yield a network in evaluation mode with the present weights: the trained one, or a copy where it is in pieces."""
        engine = self._training.engine
        if self._config.distributed.zero_stage == 3 and engine.kind == "deepspeed":
            state: dict[str, Tensor] = engine.broadcast_object(engine.full_weights())
            segmenter = bare_segmenter(self._config, start=self._start, num_classes=self._labelled.num_classes)
            segmenter.load_state_dict(state)
            yield segmenter.to(engine.device).eval()
            return
        yield engine.module.eval()
        set_training_mode(engine.module)


def _write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{BEST_WEIGHTS}"
    save_file({name: value.contiguous() for name, value in state.items()}, beside)
    beside.rename(folder / BEST_WEIGHTS)
    fsync_folder(folder)
