"""The task of classification: what the loop of fine-tuning asks of it (``finetune/task.py``)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor, nn

from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from engine.errors import UserError
from engine.pixels import Pixels
from engine.run.folder import RunFolder
from engine.terms import MicroBatchKey, Size
from finetune.classification.augmentation import BatchAugmentation
from finetune.classification.batches import TrainingBuilder
from finetune.classification.classifiers import check_classes, find_classifiers
from finetune.classification.config import ClassifyConfig
from finetune.classification.data import open_data, write_subset
from finetune.classification.evaluate import ClassifyEvaluator
from finetune.classification.knn import measure_nearest
from finetune.classification.metrics import results_table
from finetune.classification.model import build_bare, build_model, write_classifier
from finetune.classification.predict import class_predictor
from finetune.network.start import Start
from finetune.network.weights import Trained
from finetune.task import Exportable, Results, TaskData, describe


class Classification:
    """One run that classifies; every method is said in :class:`finetune.task.Task`."""

    name: ClassVar[str] = "classify"
    sample_columns: ClassVar[tuple[str, ...]] = ("ids", "repeats", "labels", "crops")
    best_by = "top1"
    open_data = staticmethod(open_data)
    find = staticmethod(find_classifiers)
    build_bare = staticmethod(build_bare)
    write_best = staticmethod(write_classifier)
    hand_off = staticmethod(write_classifier)
    predictor = staticmethod(class_predictor)
    table = staticmethod(results_table)

    def __init__(self, config: ClassifyConfig, *, start: Start, data: TaskData, engine: Engine, folder: Path) -> None:
        self.config, self.data, self._start, self._engine = config, data, start, engine
        if engine.is_main and data.subset is not None:
            write_subset(folder, data)
        self.evaluator = ClassifyEvaluator(config=config, val=data.val, engine=engine)
        self._pixels = Pixels(start.mean, start.std).to(engine.device)
        self._augment = BatchAugmentation(
            config.augment, num_classes=data.num_classes, seed=config.run.seed, device=engine.device
        )
        self._cross_entropy = SoftTargetCrossEntropy()

    def untrained_results(self, folder: RunFolder) -> Results | None:
        """Measure kNN, where that is the method."""
        if self.config.task.method != "knn":
            return None
        return measure_nearest(self.config, engine=self._engine, folder=folder, start=self._start, data=self.data)

    def build_model(self) -> nn.Module:
        """Build backbone and classifier."""
        return build_model(self.config, start=self._start, num_classes=self.data.num_classes)

    def metadata(self) -> dict[str, Any]:
        """Say what :func:`build_bare` needs."""
        return describe(self, start=self._start) | {"method": self.config.task.method}

    def batch_builder(self) -> TrainingBuilder:
        """Make crops with their labels."""
        return TrainingBuilder(
            seed=self.config.run.seed,
            img_size=self._start.img_size,
            mean=self._start.mean,
            augment=self.config.augment,
            max_pixels=self.config.data.max_pixels,
            decode=self.config.data.decode,
        )

    def losses(
        self, forward: Callable[..., Tensor], batch: Mapping[str, Any], *, key: MicroBatchKey
    ) -> dict[str, Tensor]:
        """Compare the logits of erased and mixed images with their soft targets."""
        step, micro_batch = key
        images = self._pixels(batch["images"])
        images, targets = self._augment(images, batch["labels"], step=step, micro_batch=micro_batch)
        return {"loss": self._cross_entropy(forward(images), targets)}

    @staticmethod
    def evaluator_of(config: ClassifyConfig, *, val: ShardSet, trained: Trained, engine: Engine) -> ClassifyEvaluator:
        """Refuse another number of classes, and samples without a label."""
        check_classes(trained, val)
        return ClassifyEvaluator(config=config, val=val, engine=engine)

    @staticmethod
    def exportable(trained: Trained, *, size: Size | None) -> Exportable:
        """Put the normalisation of pixels in front of the classifier."""
        if size not in (None, trained.img_size):
            height, width = trained.img_size
            raise UserError(
                f"export: the classifiers of a run take {height}x{width} pixels; fine-tune at another "
                "--backbone.img-size"
            )
        network = nn.Sequential(trained.pixels, trained.network).eval()
        return Exportable(network=network, size=trained.img_size, outputs=("logits",), classes=trained.classes)
