"""The task of detection: what the loop of fine-tuning asks of it (``finetune/task.py``)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from engine.errors import UserError
from engine.pixels import Pixels
from engine.run.folder import RunFolder
from engine.terms import MicroBatchKey, Size
from finetune.detection.batches import DetectionBuilder
from finetune.detection.config import DetectConfig, largest_size
from finetune.detection.data import check_annotations, open_data
from finetune.detection.evaluate import DetectEvaluator, pairs
from finetune.detection.export import exportable
from finetune.detection.ground_truth import read_truth
from finetune.detection.metrics import results_table
from finetune.detection.model import backbone_state, build_bare, build_model
from finetune.detection.predict import category_ids, object_predictor
from finetune.network.pyramid import handed_off
from finetune.network.start import Start
from finetune.network.weights import Loaders, Trained, find_weights, hand_off_backbone, write_best
from finetune.task import Results, TaskData, describe


class Detection:
    """One run that finds objects; every method is said in :class:`finetune.task.Task`."""

    name: ClassVar[str] = "detect"
    sample_columns: ClassVar[tuple[str, ...]] = ("ids", "repeats", "sizes")
    open_data = staticmethod(open_data)
    build_bare = staticmethod(build_bare)
    write_best = staticmethod(write_best)
    predictor = staticmethod(object_predictor)
    exportable = staticmethod(exportable)
    table = staticmethod(results_table)

    def __init__(self, config: DetectConfig, *, start: Start, data: TaskData, engine: Engine, folder: Path) -> None:
        self.config, self.data, self._start = config, data, start
        self.best_by = "mask_AP" if config.detector.has_masks else "box_AP"
        self._truth = check_annotations(config, data, folder=folder) if engine.is_main else None
        engine.barrier()
        self.evaluator = DetectEvaluator(config=config, val=data.val, truth=self._truth, engine=engine)
        self._pixels = Pixels(start.mean, start.std).to(engine.device)

    def untrained_results(self, folder: RunFolder) -> Results | None:
        """Nothing: every detector is trained."""

    def build_model(self) -> nn.Module:
        """Build the detector."""
        return build_model(self.config, start=self._start, num_classes=self.data.num_classes)

    def metadata(self) -> dict[str, Any]:
        """Say what :func:`build_bare` needs, and COCO's category ids (main process only)."""
        category_ids = None if self._truth is None else self._truth.category_ids
        return describe(self, start=self._start) | {"category_ids": category_ids}

    def batch_builder(self) -> DetectionBuilder:
        """Make images of different sizes on one canvas, with their objects."""
        return DetectionBuilder(
            seed=self.config.run.seed,
            resize=self.config.resize,
            num_classes=self.data.num_classes,
            masks=self.config.detector.has_masks,
            max_pixels=self.config.data.max_pixels,
        )

    def losses(
        self, forward: Callable[..., dict[str, Tensor]], batch: Mapping[str, Any], *, key: MicroBatchKey
    ) -> dict[str, Tensor]:
        """Add up the detector's own losses."""
        targets, sizes = batch["targets"].as_dicts(), pairs(batch["sizes"])
        parts = forward(self._pixels(batch["images"]), sizes, targets)
        assert "loss" not in parts, "a detector's losses have names of their own: loss is their sum"
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def hand_off(
        self, folder: Path, *, metadata: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Write the backbone as the detector left it."""
        hand_off_backbone(
            folder,
            metadata=metadata,
            model_args=handed_off(self._start, largest=largest_size(self.config.resize)),
            state=backbone_state(state),
            step=step,
            weights=weights,
        )

    @staticmethod
    def find(what: str, *, img_size: Size | None = None) -> Loaders:
        """Find the detectors of a run, a checkpoint or best weights; they take images of any size."""
        return find_weights(Path(what), task=Detection.name, build=build_bare)

    @staticmethod
    def evaluator_of(config: DetectConfig, *, val: ShardSet, trained: Trained, engine: Engine) -> DetectEvaluator:
        """Read what is annotated in ``val``; refuse other classes than those that were learnt."""
        if val.classes != trained.classes:
            raise UserError(
                f"the {trained.name} weights find {trained.num_classes} classes, val-shards {val.folder} has "
                f"{len(val.classes or ())} or others; measure it on the classes that it was trained on"
            )
        truth = None
        if engine.is_main:
            masks = config.detector.has_masks
            truth = read_truth(val, option="val-shards", like=category_ids(trained), masks=masks)
        return DetectEvaluator(config=config, val=val, truth=truth, engine=engine)
