"""The fine-tuning loop: fetch a micro-batch, augment it, classify it, update; and measure accuracy every so often."""

import logging
from collections.abc import Iterator
from typing import Any

from timm.loss.cross_entropy import SoftTargetCrossEntropy

from data.loading.loader import training_batches
from data.loading.mixing import training_order
from data.loading.order import TrainingOrder
from engine.distributed.engine import Engine
from engine.loop.training import Training
from engine.pixels import Pixels
from engine.run.folder import RunFolder
from engine.run.sample_log import SampleLog
from finetune.classification.accuracy import Accuracy
from finetune.classification.augmentation import BatchAugmentation
from finetune.classification.batches import TrainingBuilder
from finetune.classification.classifier_folder import write_classifier
from finetune.classification.data import LabelledShards, open_labelled, write_list
from finetune.classification.knn import measure_nearest
from finetune.classification.model import build_trained
from finetune.config import FinetuneConfig
from finetune.evaluation.evaluations import Evaluations
from finetune.network.freezing import set_training_mode
from finetune.network.start import Start, resolve_start
from finetune.network.weights import describe

logger = logging.getLogger(__name__)

Results = list[dict[str, Any]]
PROGRAM = "finetune"


def train(config: FinetuneConfig) -> Results:
    """Fine-tune to the end, or to where a stop is asked for; return what was measured (main process only)."""
    start, labelled = resolve_start(config.backbone), open_labelled(config)
    engine = Engine(config.distributed)
    try:
        with RunFolder.open(config.run.folder, config=config, rank=engine.rank) as folder:
            if engine.is_main and labelled.chosen is not None:
                write_list(folder.path, labelled)
            if config.task.method == "knn":
                return measure_nearest(config, engine=engine, folder=folder, start=start, labelled=labelled)
            return _train(config, engine=engine, folder=folder, start=start, labelled=labelled)
    finally:
        engine.close()


def _train(
    config: FinetuneConfig, *, engine: Engine, folder: RunFolder, start: Start, labelled: LabelledShards
) -> Results:
    order = training_order(config.data, labelled.train, seed=config.run.seed, repeats=config.task.repeats)
    training = Training(
        config,
        engine=engine,
        folder=folder,
        model=build_trained(config, start=start, num_classes=labelled.num_classes),
        steps_per_epoch=order.steps_per_epoch,
        metadata=describe_network(config, start=start, labelled=labelled),
        shard_of=labelled.train.shard_of,
    )
    batches = micro_batches(config, start=start, labelled=labelled, order=order, training=training)
    pixels = Pixels(start.mean, start.std).to(engine.device)
    augment = BatchAugmentation(
        config.augment, num_classes=labelled.num_classes, seed=config.run.seed, device=engine.device
    )
    cross_entropy = SoftTargetCrossEntropy()
    accuracy = Accuracy(config, start=start, labelled=labelled, pixels=pixels, engine=engine)
    evaluations = Evaluations(training, times=config.evaluation, of=accuracy)
    set_training_mode(engine.module)
    with SampleLog.open(
        folder.path, rank=engine.rank, enabled=config.report.samples, names=("ids", "repeats", "labels", "crops")
    ) as samples:
        for step in training.steps():
            for number in training.micro_batches:
                batch = training.fetch(batches, key=(step, number))
                images, targets = augment(pixels(batch["images"]), batch["labels"], step=step, micro_batch=number)
                logits = training.forward(images)
                training.backward(cross_entropy(logits, targets))
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
    config: FinetuneConfig, *, start: Start, labelled: LabelledShards, order: TrainingOrder, training: Training
) -> Iterator[dict[str, Any]]:
    """Return this process's micro-batches from the step after the last one done."""
    return training_batches(
        labelled.train,
        order,
        TrainingBuilder(
            seed=config.run.seed,
            img_size=start.img_size,
            mean=start.mean,
            augment=config.augment,
            max_pixels=config.data.max_pixels,
            decode=config.data.decode,
        ),
        micro_batches=training.micro_batches,
        first_step=training.step,
        last_step=training.last_step,
        workers=config.data.workers,
        pin=training.engine.device.type == "cuda",
    )


def describe_network(config: FinetuneConfig, *, start: Start, labelled: LabelledShards) -> dict[str, Any]:
    """Return what a checkpoint says about its network, enough to build it again."""
    known = {"train": labelled.train, "classes": labelled.classes, "num_classes": labelled.num_classes}
    return describe(PROGRAM, config, start=start, **known) | {"method": config.task.method}


def hand_off(training: Training) -> None:
    """Write the last weights, raw and averaged, as folders that timm reads (collective)."""
    _hand_off(training, weights="raw")
    if training.ema is not None:
        with training.ema.swap():
            _hand_off(training, weights="ema")


def _hand_off(training: Training, *, weights: str) -> None:
    state = training.engine.full_state_dict()
    if not training.engine.is_main:
        return
    raw = training.folder.backbone
    folder = raw if weights == "raw" else raw.with_name(f"{raw.name}-{weights}")
    write_classifier(folder, described=training.metadata, state=state, step=training.step, weights=f"last {weights}")
    logger.info("last %s weights: %s", weights, folder)
