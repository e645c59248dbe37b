"""Measures the detector of a run or a checkpoint."""

import logging
from pathlib import Path
from typing import Any

from data.shards.shard_set import open_shards
from engine.distributed.engine import Engine
from engine.errors import UserError
from finetune.detection.config import DetectConfig
from finetune.detection.evaluate import Examination
from finetune.detection.ground_truth import read_truth
from finetune.detection.task import PROGRAM
from finetune.detection.trained import fill_detector
from finetune.evaluation.results import EVAL_ONLY_FILE_NAME, write_results
from finetune.network.weights import find_weights, results_folder

logger = logging.getLogger(__name__)


def measure(config: DetectConfig) -> list[dict[str, Any]]:
    """Return the scores of all weights that ``config.eval_only`` names, on ``config.val_shards``.

    They are also written to ``eval_only.json`` in the run folder (the measured run's own unless one is given), and COCO's
    results beside it.

    Raises:
        UserError: there are no such weights, or the shards have other classes than they were trained on.
    """
    measured = Path(config.eval_only or "")
    val = open_shards(config.val_shards, cache=config.data.cache)
    detectors = [fill_detector(weights) for weights in find_weights(measured, program=PROGRAM).values()]
    for detector in detectors:
        if val.classes != detector.classes:
            raise UserError(
                f"eval-only: {measured} finds {len(detector.classes)} classes, val-shards {val.folder} has "
                f"{len(val.classes or ())} or others; measure it on the classes that it was trained on"
            )
    engine = Engine(config.distributed)
    try:
        like = detectors[0].category_ids
        truth = read_truth(val, option="val-shards", like=like) if engine.is_main else None
        folder = results_folder(measured, run=config.run)
        if engine.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        results: list[dict[str, Any]] = []
        for detector in detectors:
            examination = Examination(
                config=config, shards=val, truth=truth, pixels=detector.pixels.to(engine.device), engine=engine
            )
            where = folder / f"eval_only-{detector.name}.json"
            scores = examination.score(detector.network.to(engine.device), predictions=where)
            results.append({"name": detector.name, "step": detector.step, **scores})
        if engine.is_main:
            path = write_results(folder, results, classes=val.classes, name=EVAL_ONLY_FILE_NAME)
            logger.info("results: %s", path)
        return results
    finally:
        engine.close()
