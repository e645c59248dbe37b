"""How detectors are measured in a training run, and kept."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetune.detection.config import DetectConfig
from finetune.detection.evaluate import Examination, Scores
from finetune.detection.model import build_plain
from finetune.evaluation.evaluations import Measured
from finetune.network.start import Start
from finetune.network.weights import write_best


class Precision:
    """COCO's average precision; :class:`finetune.evaluation.evaluations.Measure` says what is what.

    The last evaluation's detections stand in the run folder, as COCO's results: predictions-raw.json and predictions-ema.json.
    """

    def __init__(
        self, config: DetectConfig, *, folder: Path, start: Start, examination: Examination, classes: tuple[str, ...]
    ) -> None:
        self._config, self._folder, self._start, self._examination = config, folder, start, examination
        self.best_by = "mask_AP" if config.detector.has_masks else "box_AP"
        self.classes: tuple[str, ...] | None = classes
        self._num_classes = len(classes)

    def measure(self, network: nn.Module, *, weights: str) -> Measured:
        """Return COCO's figures, of boxes and, where they are found, masks."""
        scores = self._examination.score(network, predictions=self._folder / f"predictions-{weights}.json")
        return Measured(
            words=f"{in_words(scores)} on {scores['num_images']} images", figures=flat(scores), result=scores
        )

    def rebuild(self) -> nn.Module:
        """Return the detector without the trained weights."""
        return build_plain(self._config, start=self._start, num_classes=self._num_classes)

    def keep(
        self, folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Write a folder that ``predict`` and ``--eval-only`` read."""
        write_best(folder, described=described, state=state, step=step, weights=weights)


def flat(scores: Scores) -> dict[str, float | None]:
    """Return COCO's figures of boxes and masks under names such as box_AP50."""
    return {
        f"{kind}_{name}": value
        for kind in _kinds(scores)
        for name, value in scores[kind].items()
        if name != "per_class"
    }


def in_words(scores: Scores) -> str:
    """Return AP and AP50 of boxes and masks."""
    parts = [
        f"{kind} AP {_percent(scores[kind]['AP'])}, AP50 {_percent(scores[kind]['AP50'])}" for kind in _kinds(scores)
    ]
    return ", ".join(parts)


def _kinds(scores: Scores) -> list[str]:
    return [kind for kind in ("box", "mask") if kind in scores]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
