"""The shards of a segmentation run, checked before anything else starts."""

from dataclasses import dataclass

from data.shards.shard_set import ShardSet, open_shards
from engine.errors import UserError
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.labels import CITYSCAPES_IDS, check_label_maps


@dataclass(frozen=True, kw_only=True)
class LabelledShards:
    """What a run learns from and is measured on."""

    train: ShardSet
    """Pictures with label maps."""
    val: ShardSet
    """Those that are measured on."""
    num_classes: int
    """Number of classes."""
    classes: tuple[str, ...] | None
    """Their names, where the manifest has them."""


def open_labelled(config: SegmentConfig) -> LabelledShards:
    """Open both sets of shards and look at some of their label maps.

    Raises:
        UserError: a sample has no label map, a value is no class, or the classes do not fit.
    """
    train, val = (open_shards(part, cache=config.data.cache) for part in (config.data.shards, config.val_shards))
    if train.classes and val.classes and train.classes != val.classes:
        raise UserError(
            f"the {len(train.classes)} classes of data.shards are not the {len(val.classes)} of val-shards; write both with the "
            "same class names in the same order"
        )
    classes = train.classes or val.classes
    num_classes = _num_classes(config, classes)
    for option, shards in (("data.shards", train), ("val-shards", val)):
        check_label_maps(shards, labels=config.labels, num_classes=num_classes, option=option)
    named = classes if classes is not None and len(classes) == num_classes else None
    return LabelledShards(train=train, val=val, num_classes=num_classes, classes=named)


def _num_classes(config: SegmentConfig, classes: tuple[str, ...] | None) -> int:
    if config.labels.values == "cityscapes":
        return len(CITYSCAPES_IDS)
    asked = config.labels.num_classes
    if asked is None and classes is None:
        raise UserError(
            f"the manifests of {config.data.shards} and {config.val_shards} name no classes; set labels.num-classes"
        )
    return asked if asked is not None else len(classes or ())
