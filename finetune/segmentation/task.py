"""The segmentation loop: fetch a micro-batch, compare its label maps, update; and measure mIoU every so often."""

import logging
from collections.abc import Iterator
from typing import Any

from data.loading.loader import training_batches
from data.loading.mixing import training_order
from data.loading.order import TrainingOrder
from engine.distributed.engine import Engine
from engine.loop.training import Training
from engine.run.folder import RunFolder
from engine.run.sample_log import SampleLog
from finetune.evaluation.evaluations import Evaluations
from finetune.network.freezing import set_training_mode
from finetune.network.start import Start, resolve_start
from finetune.segmentation.batches import SegmentBuilder
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.data import LabelledShards, open_labelled
from finetune.segmentation.model import build_segmenter
from finetune.segmentation.quality import Quality
from finetune.segmentation.trained import describe_segmenter, hand_off_backbone

logger = logging.getLogger(__name__)

Results = list[dict[str, Any]]


def train(config: SegmentConfig) -> Results:
    """Train to the end, or to where a stop is asked for; return what was measured (main process only)."""
    start, labelled = resolve_start(config.backbone), open_labelled(config)
    engine = Engine(config.distributed)
    try:
        with RunFolder.open(config.run.folder, config=config, rank=engine.rank) as folder:
            return _train(config, engine=engine, folder=folder, start=start, labelled=labelled)
    finally:
        engine.close()


def _train(
    config: SegmentConfig, *, engine: Engine, folder: RunFolder, start: Start, labelled: LabelledShards
) -> Results:
    order = training_order(config.data, labelled.train, seed=config.run.seed)
    training = Training(
        config,
        engine=engine,
        folder=folder,
        model=build_segmenter(config, start=start, num_classes=labelled.num_classes),
        steps_per_epoch=order.steps_per_epoch,
        metadata=describe_segmenter(config, start=start, labelled=labelled),
        shard_of=labelled.train.shard_of,
    )
    batches = micro_batches(config, start=start, labelled=labelled, order=order, training=training)
    quality = Quality(config, start=start, labelled=labelled, engine=engine)
    evaluations = Evaluations(training, times=config.evaluation, of=quality)
    set_training_mode(engine.module)
    with SampleLog.open(
        folder.path, rank=engine.rank, enabled=config.report.samples, names=("ids", "repeats")
    ) as samples:
        for step in training.steps():
            for number in training.micro_batches:
                batch = training.fetch(batches, key=(step, number))
                losses = training.forward(batch["images"], batch["label_maps"], batch["shown"])
                training.backward(**losses)
                samples.note(step, number, batch)
            training.update()
            training.report()
            evaluations.measure_if_due()
            training.save_if_due()
    if training.stopped:
        return []
    hand_off(training)
    return evaluations.finish()


def micro_batches(
    config: SegmentConfig, *, start: Start, labelled: LabelledShards, order: TrainingOrder, training: Training
) -> Iterator[dict[str, Any]]:
    """Return this process's micro-batches from the step after the last one done."""
    return training_batches(
        labelled.train,
        order,
        SegmentBuilder(
            seed=config.run.seed,
            augment=config.augment,
            labels=config.labels,
            num_classes=labelled.num_classes,
            mean=start.mean,
            max_pixels=config.data.max_pixels,
        ),
        micro_batches=training.micro_batches,
        first_step=training.step,
        last_step=training.last_step,
        workers=config.data.workers,
        pin=training.engine.device.type == "cuda",
    )


def hand_off(training: Training) -> None:
    """Write the last weights of the backbone as a folder that timm reads (collective)."""
    state = training.engine.full_state_dict()
    if training.engine.is_main:
        folder = training.folder.backbone
        hand_off_backbone(folder, described=training.metadata, state=state, step=training.step, weights="last raw")
        logger.info("last raw weights of the backbone: %s", folder)
