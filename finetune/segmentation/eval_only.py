"""Measures a segmentation run or checkpoint without training."""

import logging
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data.shards.shard_set import ShardSet, open_shards
from engine.distributed.engine import Engine
from engine.errors import UserError
from finetune.evaluation.results import EVAL_ONLY_FILE_NAME, write_results
from finetune.network.weights import find_weights, results_folder
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.evaluate import evaluate
from finetune.segmentation.labels import check_label_maps
from finetune.segmentation.metrics import as_json
from finetune.segmentation.trained import PROGRAM, TrainedSegmenter, fill_segmenter

logger = logging.getLogger(__name__)


def measure(config: SegmentConfig) -> list[dict[str, Any]]:
    """Return the scores of the weights that ``config.eval_only`` names on ``config.val_shards``, also written to ``eval_only.json``.

    Inference and score stride are ``config``'s, so that other sizes, windows and flips can be tried.
    """
    measured = Path(config.eval_only or "")
    if not measured.is_dir():
        raise UserError(f"eval-only: {measured} is no folder; give that of a run or of one of its checkpoints")
    stride = config.segmenter.score_stride
    weights = find_weights(measured, program=PROGRAM).values()
    found = [fill_segmenter(one, score_stride=stride) for one in weights]
    val = open_shards(config.val_shards, cache=config.data.cache)
    check_names(val, trained=found[0])
    check_label_maps(val, labels=config.labels, num_classes=len(found[0].classes), option="val-shards")
    engine = Engine(config.distributed)
    try:
        results = [_measure(config, trained, val=val, engine=engine) for trained in found]
        if engine.is_main:
            folder = results_folder(measured, run=config.run)
            path = write_results(folder, results, classes=found[0].classes, name=EVAL_ONLY_FILE_NAME)
            logger.info("results: %s", path)
        return results
    finally:
        engine.close()


def check_names(val: ShardSet, *, trained: TrainedSegmenter) -> None:
    """Refuse shards whose classes have other names than those that were learnt, where both have names.

    Raises:
        UserError: they have; says where they differ first.
    """
    learnt = trained.classes
    if val.classes is None or learnt in (val.classes, tuple(map(str, range(len(learnt))))):
        return
    pairs = zip_longest(learnt, val.classes, fillvalue="nothing")
    first, (ours, theirs) = next((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
    raise UserError(
        f"eval-only: class {first} of the {trained.name} weights is {ours}, of val-shards {val.folder} it is {theirs}; measure "
        "them on the classes that they were trained on"
    )


def _measure(config: SegmentConfig, trained: TrainedSegmenter, *, val: ShardSet, engine: Engine) -> dict[str, Any]:
    segmenter = engine.place(trained.segmenter).eval()
    scores = evaluate(config, segmenter, val, num_classes=len(trained.classes), engine=engine)
    segmenter.cpu()
    return as_json(scores, classes=trained.classes, name=trained.name, step=trained.step)
