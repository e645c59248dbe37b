"""The detection loop: fetch a micro-batch, find its objects, update; and measure average precision every so often."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from backbones.weights.handoff import write_backbone
from data.loading.loader import training_batches
from data.loading.mixing import training_order
from data.loading.order import TrainingOrder
from engine.distributed.engine import Engine
from engine.loop.training import Training
from engine.pixels import Pixels
from engine.run.folder import RunFolder
from engine.run.sample_log import SampleLog
from engine.terms import Size
from finetune.detection.batches import DetectionBuilder
from finetune.detection.config import DetectConfig, largest_size
from finetune.detection.data import AnnotatedShards, check_annotations, open_annotated
from finetune.detection.evaluate import Examination
from finetune.detection.ground_truth import Truth
from finetune.detection.model import backbone_state, build_detector
from finetune.detection.precision import Precision
from finetune.evaluation.evaluations import Evaluations
from finetune.network.freezing import set_training_mode
from finetune.network.pyramid import handed_off
from finetune.network.start import Start, resolve_start
from finetune.network.weights import describe

logger = logging.getLogger(__name__)

Results = list[dict[str, Any]]
PROGRAM = "detect"


def train(config: DetectConfig) -> Results:
    """Train a detector to the end, or to where a stop is asked for; return what was measured (main process only)."""
    start, annotated = resolve_start(config.backbone), open_annotated(config)
    engine = Engine(config.distributed)
    try:
        with RunFolder.open(config.run.folder, config=config, rank=engine.rank) as folder:
            truth = check_annotations(config, annotated, folder=folder.path) if engine.is_main else None
            engine.barrier()
            return _train(config, engine=engine, folder=folder, start=start, annotated=annotated, truth=truth)
    finally:
        engine.close()


def _train(
    config: DetectConfig,
    *,
    engine: Engine,
    folder: RunFolder,
    start: Start,
    annotated: AnnotatedShards,
    truth: Truth | None,
) -> Results:
    order = training_order(config.data, annotated.train, seed=config.run.seed)
    training = Training(
        config,
        engine=engine,
        folder=folder,
        model=build_detector(config, start=start, num_classes=len(annotated.classes)),
        steps_per_epoch=order.steps_per_epoch,
        metadata=describe_detector(config, start=start, annotated=annotated, truth=truth),
        shard_of=annotated.train.shard_of,
    )
    batches = micro_batches(config, annotated=annotated, order=order, training=training)
    pixels = Pixels(start.mean, start.std).to(engine.device)
    examination = Examination(config=config, shards=annotated.val, truth=truth, pixels=pixels, engine=engine)
    precision = Precision(config, folder=folder.path, start=start, examination=examination, classes=annotated.classes)
    evaluations = Evaluations(training, times=config.evaluation, of=precision)
    set_training_mode(engine.module)
    with SampleLog.open(
        folder.path, rank=engine.rank, enabled=config.report.samples, names=("ids", "repeats", "sizes")
    ) as samples:
        for step in training.steps():
            for number in training.micro_batches:
                batch = training.fetch(batches, key=(step, number))
                targets, sizes = batch["targets"].as_dicts(), in_pairs(batch["sizes"])
                losses = training.forward(pixels(batch["images"]), sizes, targets)
                training.backward(torch.stack(list(losses.values())).sum(), **losses)
                samples.note(step, number, batch)
            training.update()
            training.report()
            evaluations.measure_if_due()
            training.save_if_due()
    if training.stopped:
        return []
    hand_off(config, training, start=start)
    return evaluations.finish()


def micro_batches(
    config: DetectConfig, *, annotated: AnnotatedShards, order: TrainingOrder, training: Training
) -> Iterator[dict[str, Any]]:
    """Return this process's micro-batches from the step after the last one done."""
    return training_batches(
        annotated.train,
        order,
        DetectionBuilder(
            seed=config.run.seed,
            resize=config.resize,
            num_classes=len(annotated.classes),
            masks=config.detector.has_masks,
            max_pixels=config.data.max_pixels,
        ),
        micro_batches=training.micro_batches,
        first_step=training.step,
        last_step=training.last_step,
        workers=config.data.workers,
        pin=training.engine.device.type == "cuda",
    )


def describe_detector(
    config: DetectConfig, *, start: Start, annotated: AnnotatedShards, truth: Truth | None
) -> dict[str, Any]:
    """Return what a checkpoint says about its detector, enough to build it again."""
    known = {"train": annotated.train, "classes": annotated.classes, "num_classes": len(annotated.classes)}
    return describe(PROGRAM, config, start=start, **known) | {
        "category_ids": None if truth is None else truth.category_ids
    }


def hand_off(config: DetectConfig, training: Training, *, start: Start) -> None:
    """Write the backbone alone, as the detector left it, as a folder that timm reads (collective)."""
    state = training.engine.full_state_dict()
    if not training.engine.is_main:
        return
    known = training.metadata
    write_backbone(
        training.folder.backbone,
        architecture=start.architecture,
        model_args=handed_off(start, largest=largest_size(config.resize)),
        state=backbone_state(state),
        mean=start.mean,
        std=start.std,
        provenance={key: known[key] for key in ("program", "classes", "manifest_digest", "recipe")}
        | {"step": training.step},
    )
    logger.info("backbone: %s", training.folder.backbone)


def in_pairs(x: Tensor) -> list[Size]:
    """Return [b, 2] heights and widths as pairs."""
    return [(int(height), int(width)) for height, width in x.tolist()]
