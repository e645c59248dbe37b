"""Measures a segmentation run or checkpoint without training."""

import logging
from pathlib import Path
from typing import Any

from data.loader import open_shards
from engine.config import RunConfig
from engine.distributed import Engine
from finetune.results import EVAL_ONLY_FILE_NAME, write_results
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.confusion import as_json
from finetune.segmentation.evaluation import evaluate
from finetune.segmentation.labels import check_label_maps
from finetune.segmentation.trained import TrainedSegmenter, load_trained

logger = logging.getLogger(__name__)


def measure(config: SegmentConfig) -> list[dict[str, Any]]:
    """Return the scores of the weights that ``config.eval_only`` names on ``config.val_shards``, also written to ``eval_only.json``.

    Inference is ``config``'s, so that other sizes, windows and flips can be tried.
    """
    assert config.eval_only is not None
    measured = Path(config.eval_only)
    if not measured.is_dir():
        raise ValueError(f"eval-only: {measured} is no folder; give that of a run or of one of its checkpoints")
    found = list(load_trained(measured))
    val = open_shards(config.val_shards, cache=config.data.cache)
    check_label_maps(val, labels=config.labels, num_classes=len(found[0].classes), option="val-shards")
    engine = Engine(config.distributed)
    try:
        results = [_measure(config, trained, val=val, engine=engine) for trained in found]
        if engine.is_main:
            ours = config.run.folder == RunConfig().folder and (measured / "config.yaml").exists()
            folder = measured if ours else config.run.folder
            path = write_results(folder, results, classes=found[0].classes, name=EVAL_ONLY_FILE_NAME)
            logger.info("results: %s", path)
        return results
    finally:
        engine.close()


def _measure(config: SegmentConfig, trained: TrainedSegmenter, *, val: Any, engine: Engine) -> dict[str, Any]:
    segmenter = engine.place(trained.segmenter).eval()
    scores = evaluate(config, segmenter, val, num_classes=len(trained.classes), engine=engine)
    segmenter.cpu()
    return as_json(scores, classes=trained.classes, name=trained.name, step=trained.step)
