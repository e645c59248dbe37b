"""Measures any classifier: a run, a checkpoint, a backbone folder with a classifier, or one of timm's own."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from backbones.ops.exact_windows import use_exact_windows
from backbones.weights.handoff import load_backbone, read_backbone
from data.shards.shard_set import ShardSet, open_shards
from engine.distributed.engine import Engine
from engine.errors import UserError
from engine.pixels import Pixels, Statistics
from engine.terms import Size
from finetune.classification.data import check_labels
from finetune.classification.evaluate import evaluate, evaluation_images, forward_of
from finetune.classification.metrics import as_json
from finetune.classification.model import build_plain
from finetune.classification.task import PROGRAM
from finetune.config import EvaluationConfig, FinetuneConfig
from finetune.evaluation.results import EVAL_ONLY_FILE_NAME, write_results
from finetune.network.weights import Weights, described_start, find_weights, results_folder, three

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with its classifier and what it needs to be measured."""

    name: str
    """Which weights it has: raw, ema, "best raw", ..."""
    network: nn.Module
    """The network itself."""
    num_classes: int
    """Classes that it tells apart."""
    img_size: Size
    """Input height and width in pixels."""
    mean: Statistics
    """Channel means of its pixels in [0, 1]."""
    std: Statistics
    """Channel standard deviations of its pixels in [0, 1]."""
    step: int | None = None
    """Optimizer steps its weights had, where that is known."""
    classes: tuple[str, ...] | None = None
    """Names of its classes, where they are known."""
    crop_ratio: float = EvaluationConfig.crop_ratio
    """Share of the largest central crop that its run measured on."""


def measure(config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return the scores of all weights that ``config.eval_only`` names, on ``config.val_shards``.

    They are also written to ``eval_only.json`` in the run folder (the measured run's own unless one is given), with the confusion matrices.
    """
    assert config.eval_only is not None
    val = open_shards(config.val_shards, cache=config.data.cache)
    classifiers = list(find_classifiers(config.eval_only, img_size=config.backbone.img_size))
    for classifier in classifiers:
        _check_classes(classifier, val)
    engine = Engine(config.distributed)
    try:
        results = [_measure(config, classifier, val=val, engine=engine) for classifier in classifiers]
        if engine.is_main:
            folder = results_folder(Path(config.eval_only), run=config.run)
            path = write_results(folder, results, classes=val.classes, name=EVAL_ONLY_FILE_NAME)
            logger.info("results: %s", path)
        return results
    finally:
        engine.close()


def find_classifiers(name: str, *, img_size: Size | None = None) -> Iterator[Classifier]:
    """Yield the classifiers that ``name`` stands for: raw and averaged weights of a checkpoint, else one.

    Args:
        name: a run folder, a checkpoint folder, a backbone folder, or a model name of timm's.
        img_size: for folders and timm's models, another input size than their own.

    Raises:
        UserError: there is no such thing, or it has no classifier.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        yield _from_folder(path, img_size=img_size)
    elif path.is_dir():
        yield from map(_trained, find_weights(path, program=PROGRAM).values())
    elif timm.is_model(name.partition(".")[0].removeprefix("timm/")):
        yield _from_timm(name, img_size=img_size)
    else:
        raise UserError(
            f"eval-only: {name!r} is neither a folder (of a run, a checkpoint or a backbone with a classifier) nor a model "
            f"name of timm's{_similar(name)}"
        )


def _from_folder(folder: Path, *, img_size: Size | None) -> Classifier:
    info = read_backbone(folder)
    if info.num_classes == 0:
        raise UserError(f"{folder} has no classifier; fine-tune it first, or measure it with --task.method knn")
    network = load_backbone(folder, img_size=img_size)
    return Classifier(
        name=str(info.provenance.get("weights", folder.name)),
        network=network,
        num_classes=info.num_classes,
        img_size=img_size or info.img_size,
        mean=three(info.mean),
        std=three(info.std),
        step=info.provenance.get("step"),
        classes=None if info.provenance.get("classes") is None else tuple(info.provenance["classes"]),
        crop_ratio=_crop_ratio(info.provenance),
    )


def _trained(weights: Weights) -> Classifier:
    """Return the classifier that a checkpoint describes, with one set of its weights."""
    start, described = described_start(weights.described), weights.described
    network = build_plain(start, method=described["method"], num_classes=described["num_classes"])
    weights.fill(network)
    return Classifier(
        name=weights.name,
        network=network,
        num_classes=described["num_classes"],
        classes=None if described["classes"] is None else tuple(described["classes"]),
        img_size=start.img_size,
        mean=start.mean,
        std=start.std,
        step=weights.step,
        crop_ratio=_crop_ratio(described),
    )


def _crop_ratio(described: Mapping[str, Any]) -> float:
    evaluation = described.get("recipe", {}).get("evaluation", {})
    return float(evaluation.get("crop_ratio", EvaluationConfig.crop_ratio))


def _from_timm(name: str, *, img_size: Size | None) -> Classifier:
    options: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    try:
        network: Any = timm.create_model(name.removeprefix("timm/"), pretrained=True, **options)
    except Exception as error:
        raise UserError(f"eval-only: timm's weights of {name} cannot be had: {error}") from error
    known = network.pretrained_cfg
    if network.num_classes == 0:
        raise UserError(f"eval-only: timm's {name} has no classifier; choose one that was fine-tuned")
    return Classifier(
        name="timm",
        network=use_exact_windows(network),
        num_classes=network.num_classes,
        img_size=img_size or tuple(known["input_size"][-2:]),
        mean=three(known["mean"]),
        std=three(known["std"]),
    )


def _measure(config: FinetuneConfig, classifier: Classifier, *, val: ShardSet, engine: Engine) -> dict[str, Any]:
    network = classifier.network.to(engine.device).eval()
    scores = evaluate(
        forward_of(network, Pixels(classifier.mean, classifier.std).to(engine.device), engine=engine),
        evaluation_images(config, val, img_size=classifier.img_size, engine=engine),
        num_classes=classifier.num_classes,
        num_samples=val.num_samples,
        engine=engine,
    )
    network.cpu()
    return as_json(scores, classes=val.classes, name=classifier.name, step=classifier.step)


def _check_classes(classifier: Classifier, val: ShardSet) -> None:
    if val.classes is not None and len(val.classes) != classifier.num_classes:
        raise UserError(
            f"eval-only: the {classifier.name} weights tell {classifier.num_classes} classes apart, but val-shards {val.folder} has {len(val.classes)}; "
            "measure it on the classes that it was trained on"
        )
    check_labels(val, num_classes=classifier.num_classes, option="val-shards")


def _similar(name: str) -> str:
    with suppress(Exception):
        close = timm.list_models(f"{name.split('_')[0]}*")[:3]
        return f" such as {', '.join(close)}" if close else ""
    return ""
