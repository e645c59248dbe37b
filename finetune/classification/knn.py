"""kNN on frozen features: nothing is trained, so it says what pretraining alone has learned.

Features are means over the final norm's tokens. Two floors stand beside it, a random network of the same architecture
and 8x8 raw pixels: features of masked image modelling are weak neighbours early on, and may lie below both.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from engine.pixels import Pixels
from engine.probes import extract_features, knn_accuracy, pixel_features
from engine.run.folder import RunFolder
from finetune.classification.config import ClassifyConfig
from finetune.classification.evaluate import evaluation_images, forward_of
from finetune.evaluation.results import write_results
from finetune.network.start import Start, build_network
from finetune.task import Results, TaskData

logger = logging.getLogger(__name__)


def measure_nearest(
    config: ClassifyConfig, *, engine: Engine, folder: RunFolder, start: Start, data: TaskData
) -> Results:
    """Measure kNN and its floors, and write them to ``evaluation.json`` (main process only)."""
    forwards: dict[str, Callable[[Tensor], Tensor]] = {"knn": _features_of(config, engine=engine, start=start)}
    if start.folder is not None:
        forwards["knn, random network"] = _features_of(config, engine=engine, start=replace(start, folder=None))
    forwards["knn, 8x8 pixels"] = pixel_features
    results: Results = []
    for name, forward in forwards.items():
        top1 = _accuracy(config, engine=engine, forward=forward, start=start, data=data)
        results.append({"name": name, "step": None, "top1": top1, "num_images": data.val.num_samples})
        logger.info("%s: top-1 %.2f %%", name, 100 * top1)
    if not engine.is_main:
        return []
    path = write_results(folder.path, results, classes=data.classes)
    logger.info("results: %s", path)
    return results


def _features_of(config: ClassifyConfig, *, engine: Engine, start: Start) -> Callable[[Tensor], Tensor]:
    network = build_network(start, num_classes=0, seed=config.run.seed).to(engine.device).eval()
    return forward_of(network, Pixels(start.mean, start.std).to(engine.device), engine=engine)


def _accuracy(
    config: ClassifyConfig,
    *,
    engine: Engine,
    forward: Callable[[Tensor], Tensor],
    start: Start,
    data: TaskData,
) -> float:
    """Measure top-1; the processes share the images and each then holds all features (collective)."""

    def features(shards: ShardSet) -> tuple[Tensor, Tensor]:
        size = max(1, min(config.evaluation.micro_batch_size, shards.num_samples // engine.world_size))
        shared = replace(config, evaluation=replace(config.evaluation, micro_batch_size=size))  # some for every process
        x, y = extract_features(
            forward, evaluation_images(shared, shards, img_size=start.img_size, engine=engine), engine.device
        )
        return engine.gather(x.to(engine.device)), engine.gather(y.to(engine.device))

    train, val = features(data.train), features(data.val)
    return knn_accuracy(
        *train,
        *val,
        k=config.task.neighbours,
        temperature=config.task.temperature,
        num_classes=data.num_classes,
    )
