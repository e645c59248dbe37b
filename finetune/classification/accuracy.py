"""How classifiers are measured in a training run, and kept."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.distributed.engine import Engine
from engine.pixels import Pixels
from finetune.classification.classifier_folder import write_classifier
from finetune.classification.data import LabelledShards
from finetune.classification.evaluate import evaluate, evaluation_images, forward_of
from finetune.classification.metrics import as_json
from finetune.classification.model import build_plain
from finetune.config import FinetuneConfig
from finetune.evaluation.evaluations import Measured
from finetune.network.start import Start


class Accuracy:
    """Top-1 accuracy; :class:`finetune.evaluation.evaluations.Measure` says what is what."""

    best_by = "top1"

    def __init__(
        self, config: FinetuneConfig, *, start: Start, labelled: LabelledShards, pixels: Pixels, engine: Engine
    ) -> None:
        self._config, self._start, self._labelled = config, start, labelled
        self._pixels, self._engine = pixels, engine
        self.classes = labelled.classes

    def measure(self, network: nn.Module, *, weights: str) -> Measured:
        """Return its accuracy on all samples."""
        labelled, engine = self._labelled, self._engine
        scores = evaluate(
            forward_of(network, self._pixels, engine=engine),
            evaluation_images(self._config, labelled.val, img_size=self._start.img_size, engine=engine),
            num_classes=labelled.num_classes,
            num_samples=labelled.val.num_samples,
            engine=engine,
        )
        shares = f"top-1 {100 * scores.top1:.2f} %, top-5 {100 * scores.top5:.2f} %"
        return Measured(
            words=f"{shares}, loss {scores.loss:.4f} on {scores.num_images} images",
            figures={**scores.summary()},
            result=as_json(scores, classes=self.classes),
        )

    def rebuild(self) -> nn.Module:
        """Return the network without the trained weights."""
        return build_plain(self._start, method=self._config.task.method, num_classes=self._labelled.num_classes)

    def keep(
        self, folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Write a folder that timm reads."""
        write_classifier(folder, described=described, state=state, step=step, weights=f"best {weights}")
