"""How segmenters are measured in a training run, and kept."""

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from engine.distributed.engine import Engine
from finetune.evaluation.evaluations import Measured
from finetune.network.start import Start
from finetune.network.weights import write_best
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.data import LabelledShards
from finetune.segmentation.evaluate import evaluate
from finetune.segmentation.metrics import as_json
from finetune.segmentation.model import Segmenter, bare_segmenter


class Quality:
    """mIoU; :class:`finetune.evaluation.evaluations.Measure` says what is what."""

    best_by = "miou"

    def __init__(self, config: SegmentConfig, *, start: Start, labelled: LabelledShards, engine: Engine) -> None:
        self._config, self._start, self._labelled, self._engine = config, start, labelled, engine
        self.classes = labelled.classes

    def measure(self, network: nn.Module, *, weights: str) -> Measured:
        """Return how well its label maps agree with the true ones."""
        labelled, engine = self._labelled, self._engine
        segmenter = cast(Segmenter, network)
        scores = evaluate(self._config, segmenter, labelled.val, num_classes=labelled.num_classes, engine=engine)
        shares = f"mIoU {100 * scores.miou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} %"
        return Measured(
            words=f"{shares} on {scores.num_images} images, {scores.images_per_s:.2f} images/s",
            figures={**scores.summary()},
            result=as_json(scores, classes=self.classes),
        )

    def rebuild(self) -> nn.Module:
        """Return the segmenter without the trained weights."""
        return bare_segmenter(self._config, start=self._start, num_classes=self._labelled.num_classes)

    def keep(
        self, folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Write a folder that ``predict`` and ``--eval-only`` read."""
        write_best(folder, described=described, state=state, step=step, weights=weights)
