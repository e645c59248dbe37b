"""The shards of a segmentation run, checked before anything else starts."""

from itertools import zip_longest

from data.shards.shard_set import ShardSet, open_shards
from engine.errors import UserError
from finetune.network.weights import Trained
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.labels import CITYSCAPES_IDS, check_label_maps
from finetune.task import TaskData


def open_data(config: SegmentConfig) -> TaskData:
    """Open both sets of shards and look at some of their label maps.

    Raises:
        UserError: a sample has no label map, a value is no class, or the classes do not fit.
    """
    train, val = (open_shards(part, cache=config.data.cache) for part in (config.data.shards, config.val_shards))
    if train.classes and val.classes and train.classes != val.classes:
        raise UserError(
            f"the {len(train.classes)} classes of data.shards are not the {len(val.classes)} of val-shards; write both "
            "with the same class names in the same order"
        )
    classes = train.classes or val.classes
    num_classes = _num_classes(config, classes)
    for option, shards in (("data.shards", train), ("val-shards", val)):
        check_label_maps(shards, labels=config.labels, num_classes=num_classes, option=option)
    named = classes if classes is not None and len(classes) == num_classes else None
    return TaskData(train=train, val=val, num_classes=num_classes, classes=named)


def check_names(val: ShardSet, *, trained: Trained) -> None:
    """Refuse shards whose classes have other names than those that were learnt, where both have names.

    Raises:
        UserError: they have; says where they differ first.
    """
    if val.classes is None or trained.classes in (None, val.classes):
        return
    pairs = zip_longest(trained.classes, val.classes, fillvalue="nothing")
    first, (ours, theirs) = next((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
    raise UserError(
        f"class {first} of the {trained.name} weights is {ours}, of val-shards {val.folder} it is {theirs}; measure "
        "them on the classes that they were trained on"
    )


def _num_classes(config: SegmentConfig, classes: tuple[str, ...] | None) -> int:
    if config.labels.values == "cityscapes":
        return len(CITYSCAPES_IDS)
    option = config.labels.num_classes
    if option is None and classes is None:
        raise UserError(
            f"the manifests of {config.data.shards} and {config.val_shards} name no classes; set labels.num-classes"
        )
    return option if option is not None else len(classes or ())
