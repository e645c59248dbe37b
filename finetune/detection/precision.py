"""Measures the average precision of a run's weights, raw and averaged, every so often.

runs/x/
├── average_precision.jsonl   one line per evaluation and set of weights (raw, ema)
├── predictions-raw.json      the last evaluation's detections, as COCO's results; and -ema
└── evaluation.json           all figures of the last weights, and the best of the log
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from engine.durable import write_durably
from engine.training import Training
from finetune.detection.config import DetectConfig
from finetune.detection.detector import build_plain
from finetune.detection.evaluate import Examination, Scores
from finetune.freezing import set_training_mode
from finetune.results import write_results
from finetune.start import Start

logger = logging.getLogger(__name__)

LOG_NAME = "average_precision.jsonl"
WEIGHTS = ("raw", "ema")


class PrecisionLog:
    """Runs the evaluations of a training run; every process takes part in each."""

    def __init__(
        self,
        config: DetectConfig,
        *,
        training: Training,
        start: Start,
        examination: Examination,
        classes: tuple[str, ...],
    ) -> None:
        self._config, self._training, self._start = config, training, start
        self._examination, self._classes = examination, classes
        every = config.evaluation.every_steps
        self._every = every or max(1, round(config.evaluation.every_epochs * training.schedule.steps_per_epoch))
        self._file = training.folder.path / LOG_NAME
        self._lines = [line for line in _read(self._file) if line["step"] <= training.step]
        self._last: dict[str, Scores] = {}

    def measure_if_due(self) -> None:
        """Measure all weights if this step asks for it."""
        step = self._training.step
        if step % self._every == 0 or step == self._training.last_step:
            self._measure()

    def finish(self) -> list[dict[str, Any]]:
        """Return the results of the last weights and the best of the log, written to ``evaluation.json`` (main process only)."""
        if not self._last:
            self._measure()
        if not self._training.engine.is_main:
            return []
        step = self._training.step
        results = [{"name": f"last {weights}", "step": step, **scores} for weights, scores in self._last.items()]
        for weights in self._last:
            best = max((line for line in self._lines if line["weights"] == weights), key=_rank)
            results.append({"name": f"best {weights}", **{k: v for k, v in best.items() if k != "weights"}})
        path = write_results(self._training.folder.path, results, classes=self._classes)
        logger.info("results: %s", path)
        return results

    def _measure(self) -> None:
        averages = self._training.ema
        self._last = {}
        for weights in WEIGHTS if averages is not None else WEIGHTS[:1]:
            with averages.swap() if averages is not None and weights == "ema" else contextlib.nullcontext():
                self._measure_present(weights)

    def _measure_present(self, weights: str) -> None:
        """Measure the weights that are in the module now (collective)."""
        step, folder = self._training.step, self._training.folder.path
        with self._evaluated_module() as detector:
            scores = self._examination.score(detector, predictions=folder / f"predictions-{weights}.json")
        self._last[weights] = scores
        logger.info("step %d, %s weights: %s on %d images", step, weights, in_words(scores), scores["num_images"])
        if self._training.engine.is_main:
            kept = {kind: {k: v for k, v in scores[kind].items() if k != "per_class"} for kind in _kinds(scores)}
            self._lines = [line for line in self._lines if (line["step"], line["weights"]) != (step, weights)]
            self._lines.append({"step": step, "weights": weights, **kept, "num_images": scores["num_images"]})
            write_durably(self._file, "".join(json.dumps(line) + "\n" for line in self._lines).encode())

    @contextlib.contextmanager
    def _evaluated_module(self) -> Iterator[nn.Module]:
        """Yield a detector in evaluation mode with the present weights: the trained one, or a copy where it is in pieces."""
        engine = self._training.engine
        if self._config.distributed.zero_stage == 3 and engine.kind == "deepspeed":
            state = engine.broadcast_object(engine.full_weights())
            detector = build_plain(self._config, start=self._start, num_classes=len(self._classes))
            detector.load_state_dict(state)
            yield detector.to(engine.device).eval()
            return
        yield engine.module.eval()
        set_training_mode(engine.module)


def in_words(scores: Scores) -> str:
    """Return AP and AP50 of boxes and masks."""
    parts = [
        f"{kind} AP {_percent(scores[kind]['AP'])}, AP50 {_percent(scores[kind]['AP50'])}" for kind in _kinds(scores)
    ]
    return ", ".join(parts)


def _rank(line: dict[str, Any]) -> tuple[float, int]:
    """Order lines by mask AP, where there is one, else box AP; of equals the first is best."""
    figure = line[_kinds(line)[-1]]["AP"]
    return (-1.0 if figure is None else figure, -line["step"])


def _kinds(scores: Scores) -> list[str]:
    return [kind for kind in ("box", "mask") if kind in scores]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
