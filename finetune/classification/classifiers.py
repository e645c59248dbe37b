"""Any classifier that can be measured: of a run, a checkpoint, a backbone folder with a classifier, or timm's own."""

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import timm

from backbones.ops.exact_windows import use_exact_windows
from backbones.weights.handoff import TIMM, load_backbone, read_backbone
from data.shards.labelled import check_labels
from data.shards.shard_set import ShardSet
from engine.errors import UserError, is_refusal
from engine.terms import Size
from finetune.classification.model import build_bare
from finetune.network.weights import Loaders, Trained, find_weights, three

logger = logging.getLogger(__name__)


def find_classifiers(what: str, *, img_size: Size | None = None) -> Loaders:
    """Find the classifiers that ``what`` stands for: raw and averaged weights of a checkpoint, else one.

    Args:
        what: a run folder, a checkpoint folder, a backbone folder, or a model name of timm's.
        img_size: for backbone folders and timm's models, another input size than their own.

    Raises:
        UserError: there is no such thing, or it has no classifier.
    """
    path = Path(what)
    if (path / "config.json").is_file():
        info = read_backbone(path)
        if info.num_classes == 0:
            raise UserError(f"{path} has no classifier; fine-tune it first, or measure it with --task.method knn")
        return {str(info.provenance.get("weights", path.name)): partial(_from_folder, path, img_size=img_size)}
    if path.is_dir():
        return find_weights(path, task="classify", build=build_bare)
    if timm.is_model(what.partition(".")[0].removeprefix("timm/")):
        return {"timm": partial(_from_timm, what, img_size=img_size)}
    raise UserError(
        f"{what!r} is neither a folder (of a run, a checkpoint or a backbone with a classifier) nor a model name of "
        f"timm's{_similar(what)}"
    )


def check_classes(trained: Trained, val: ShardSet) -> None:
    """Refuse shards with other classes than a classifier tells apart, or with samples without a label.

    Other names for all classes, as of another language, are only warned of; a name that has another number is refused.

    Raises:
        UserError: says both numbers, or what is wrong with the labels.
    """
    if val.classes is not None and len(val.classes) != trained.num_classes:
        raise UserError(
            f"the {trained.name} weights tell {trained.num_classes} classes apart, but val-shards {val.folder} has "
            f"{len(val.classes)}; measure it on the classes that it was trained on"
        )
    remedy = "measure it on the classes that it was trained on"
    check_labels(val, num_classes=trained.num_classes, option="val-shards", remedy=remedy)
    if val.classes is None or trained.classes in (None, val.classes):
        return
    numbers = {name: number for number, name in enumerate(trained.classes)}
    moved = [(name, number) for number, name in enumerate(val.classes) if numbers.get(name, number) != number]
    if moved:
        name, number = moved[0]
        raise UserError(
            f"class {name!r} is number {number} in val-shards {val.folder}, and {numbers[name]} for the {trained.name} "
            f"weights; {remedy}, written with the same class folders"
        )
    logger.warning(
        "the classes of val-shards %s have other names (%s) than those that were trained (%s); taken by their numbers",
        *(val.folder, val.classes[0], trained.classes[0]),
    )


def _from_folder(folder: Path, *, img_size: Size | None) -> Trained:
    info = read_backbone(folder)
    classes = info.provenance.get("classes")
    return Trained(
        name=str(info.provenance.get("weights", folder.name)),
        step=info.provenance.get("step"),
        network=load_backbone(folder, exact_windows=info.provenance.get("windows") != TIMM, img_size=img_size),
        classes=None if classes is None else tuple(classes),
        num_classes=info.num_classes,
        img_size=img_size or info.img_size,
        mean=three(info.mean),
        std=three(info.std),
        metadata=info.provenance,
    )


def _from_timm(name: str, *, img_size: Size | None) -> Trained:
    options: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    try:
        network: Any = timm.create_model(name.removeprefix("timm/"), pretrained=True, **options)
    except Exception as error:  # of timm, of the hub and of the network
        if not is_refusal(error):
            raise
        raise UserError(f"timm's weights of {name} cannot be had: {error}") from error
    settings = network.pretrained_cfg
    if network.num_classes == 0:
        raise UserError(f"timm's {name} has no classifier; choose one that was fine-tuned")
    return Trained(
        name="timm",
        step=None,
        network=use_exact_windows(network),
        classes=None,
        num_classes=network.num_classes,
        img_size=img_size or tuple(settings["input_size"][-2:]),
        mean=three(settings["mean"]),
        std=three(settings["std"]),
        metadata={},
    )


def _similar(name: str) -> str:
    with suppress(Exception):
        close = timm.list_models(f"{name.split('_')[0]}*")[:3]
        return f" such as {', '.join(close)}" if close else ""
    return ""
