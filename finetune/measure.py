"""Measures trained networks of any task on any shards, without training."""

import logging
from pathlib import Path
from typing import Any

from data.shards.shard_set import open_shards
from engine.config import RunConfig
from engine.distributed.engine import Engine
from finetune.config import FinetuneConfig
from finetune.evaluation.results import MEASURED_NAME, write_results
from finetune.network.weights import Trained
from finetune.task import Evaluator, Results, load_task
from finetune.tasks import task_of_config

logger = logging.getLogger(__name__)


def measure(config: FinetuneConfig, what: str) -> Results:
    """Measure all weights that ``what`` names on ``config.val_shards``.

    The results are also written to ``eval_only.json`` in the run folder (the measured run's own unless another one is
    given), and beside it what the task writes of each sample.

    Args:
        config: the recipe; its data, evaluation and inference settings count, not its network.
        what: a run folder, a checkpoint, best weights, or what else the task finds.

    Raises:
        UserError: there is no such thing, or the shards have other classes than it was trained on.
    """
    task = load_task(task_of_config(config))
    networks = [load() for load in task.find(what, img_size=config.backbone.img_size).values()]
    val = open_shards(config.val_shards, cache=config.data.cache)
    engine = Engine(config.distributed)
    try:
        folder = _results_folder(Path(what), run=config.run)
        evaluator = task.evaluator_of(config, val=val, trained=networks[0], engine=engine)
        if engine.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        results = [_measure(trained, evaluator=evaluator, engine=engine, folder=folder) for trained in networks]
        if engine.is_main:
            first = networks[0]  # whose own names the figures are kept by; networks of others have none
            classes = first.class_names if first.metadata else val.classes or first.class_names
            logger.info("results: %s", write_results(folder, results, classes=classes, name=MEASURED_NAME))
        return results
    finally:
        engine.close()


def _measure(trained: Trained, *, evaluator: Evaluator, engine: Engine, folder: Path) -> dict[str, Any]:
    network = engine.place(trained.network).eval()
    evaluation = evaluator.evaluate(trained, predictions=folder / f"eval_only-{trained.name}.json")
    network.cpu()  # room for the next one
    return {"name": trained.name, "step": trained.step, **evaluation.result}


def _results_folder(measured: Path, *, run: RunConfig) -> Path:
    """Choose where results go: ``run.folder`` where it was given, else the measured run itself."""
    ours = run.folder == RunConfig().folder and (measured / "config.yaml").exists()
    return measured if ours else run.folder
