"""The task of segmentation: what the loop of fine-tuning asks of it (``finetune/task.py``)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from engine.run.folder import RunFolder
from engine.terms import MicroBatchKey, Size
from finetune.network.pyramid import dense_start
from finetune.network.start import Start
from finetune.network.weights import Loaders, Trained, find_weights, hand_off_backbone, write_best
from finetune.segmentation.batches import SegmentBuilder
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.data import check_names, open_data
from finetune.segmentation.evaluate import SegmentEvaluator
from finetune.segmentation.labels import check_label_maps
from finetune.segmentation.metrics import results_table
from finetune.segmentation.model import Scores, backbone_state, build_bare, build_model
from finetune.segmentation.predict import label_predictor
from finetune.task import Exportable, Results, TaskData, describe


class Segmentation:
    """One run that segments; every method is said in :class:`finetune.task.Task`."""

    name: ClassVar[str] = "segment"
    sample_columns: ClassVar[tuple[str, ...]] = ("ids", "repeats")
    best_by = "miou"
    open_data = staticmethod(open_data)
    build_bare = staticmethod(build_bare)
    write_best = staticmethod(write_best)
    predictor = staticmethod(label_predictor)
    table = staticmethod(results_table)

    def __init__(self, config: SegmentConfig, *, start: Start, data: TaskData, engine: Engine, folder: Path) -> None:
        self.config, self.data, self._start = config, data, start
        self.evaluator = SegmentEvaluator(config=config, val=data.val, engine=engine)

    def untrained_results(self, folder: RunFolder) -> Results | None:
        """Nothing: every head is trained."""

    def build_model(self) -> nn.Module:
        """Build backbone and head."""
        return build_model(self.config, start=self._start, num_classes=self.data.num_classes)

    def metadata(self) -> dict[str, Any]:
        """Say what :func:`build_bare` needs, for images of any size."""
        dense = dense_start(self._start, largest=self.config.augment.crop)
        return describe(self, start=replace(self._start, model_args=dense.model_args))

    def batch_builder(self) -> SegmentBuilder:
        """Make crops with their label maps."""
        return SegmentBuilder(
            seed=self.config.run.seed,
            augment=self.config.augment,
            labels=self.config.labels,
            num_classes=self.data.num_classes,
            mean=self._start.mean,
            max_pixels=self.config.data.max_pixels,
        )

    def losses(
        self, forward: Callable[..., dict[str, Tensor]], batch: Mapping[str, Any], *, key: MicroBatchKey
    ) -> dict[str, Tensor]:
        """Give the head's own losses."""
        return forward(batch["images"], batch["label_maps"], batch["shown"])

    def hand_off(
        self, folder: Path, *, metadata: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Write the backbone as the head left it."""
        hand_off_backbone(
            folder,
            metadata=metadata,
            model_args=metadata["model_args"],
            state=backbone_state(state),
            step=step,
            weights=weights,
        )

    @staticmethod
    def find(what: str, *, img_size: Size | None = None) -> Loaders:
        """Find the segmenters of a run, a checkpoint or best weights; they take images of any size."""
        return find_weights(Path(what), task=Segmentation.name, build=build_bare)

    @staticmethod
    def evaluator_of(config: SegmentConfig, *, val: ShardSet, trained: Trained, engine: Engine) -> SegmentEvaluator:
        """Refuse classes of other names, and values of label maps that are no class."""
        check_names(val, trained=trained)
        check_label_maps(val, labels=config.labels, num_classes=trained.num_classes, option="val-shards")
        return SegmentEvaluator(config=config, val=val, engine=engine)

    @staticmethod
    def exportable(trained: Trained, *, size: Size | None) -> Exportable:
        """Make whole images' scores, for the training crop where no size is given."""
        crop: list[int] = trained.metadata["recipe"]["augment"]["crop"]
        network = Scores(trained.network).eval()
        return Exportable(
            network=network, size=size or (crop[0], crop[1]), outputs=("scores",), classes=trained.classes
        )
