"""The annotated data of a detection run, checked before anything else starts."""

import logging
from pathlib import Path

from data.shards.shard_set import open_shards
from engine.errors import UserError
from finetune.detection.config import DetectConfig
from finetune.detection.ground_truth import Truth, read_truth, write_faults
from finetune.task import TaskData

logger = logging.getLogger(__name__)


def open_data(config: DetectConfig) -> TaskData:
    """Open both sets of shards.

    Raises:
        UserError: they hold no samples, name no classes, or other ones; the message says what to do.
    """
    train, val = (open_shards(part, cache=config.data.cache) for part in (config.data.shards, config.val_shards))
    for option, shards in (("data.shards", train), ("val-shards", val)):
        if not shards.num_samples:
            raise UserError(f"{option} {shards.folder} holds no samples; write some with `python data/main.py write`")
        if not shards.classes:
            raise UserError(
                f"{option} {shards.folder} names no classes of objects; write the shards from COCO's layout with "
                "`python data/main.py write`"
            )
    assert train.classes is not None
    if train.classes != val.classes:
        raise UserError(
            f"the {len(train.classes)} classes of data.shards are not the {len(val.classes or ())} of val-shards; "
            "write both from annotations with the same categories"
        )
    return TaskData(train=train, val=val, classes=train.classes, num_classes=len(train.classes))


def check_annotations(config: DetectConfig, data: TaskData, *, folder: Path) -> Truth:
    """Read all annotations, write what is wrong with them into ``folder``, and return those to measure on.

    Shards that lie elsewhere are not fetched for it: what is wrong with those to learn from is found while training.

    Raises:
        UserError: an object has a class beyond the last, there is nothing to learn, or all masks are missing.
    """
    masks = config.detector.has_masks
    train = None if data.train.cached else read_truth(data.train, option="data.shards", masks=masks)
    val = read_truth(data.val, option="val-shards", like=() if train is None else train.category_ids, masks=masks)
    faults = [fault for truth in (train, val) if truth is not None for fault in truth.faults]
    if faults:
        logger.warning("%s", write_faults(folder, faults))
    for option, truth in zip(("val-shards", "data.shards"), (val, train), strict=True):
        if truth is not None and truth.without_mask and not truth.dataset["annotations"]:
            raise UserError(
                f"{option}: none of {truth.without_mask} objects has a usable mask, which "
                f"detector.kind {config.detector.kind} needs; set --detector.masks False, or annotate masks"
            )
    if train is not None and not train.dataset["annotations"]:
        raise UserError(f"data.shards {data.train.folder}: there is no usable object in any image")
    return val
