"""The loop of fine-tuning, whatever the task: fetch, forward, backward, update, report, evaluate, save."""

import logging

from data.loading.loader import TrainingBatches, training_batches
from data.loading.mixing import training_order
from data.loading.order import TrainingOrder
from engine.distributed.engine import Engine
from engine.loop.training import Training
from engine.run.folder import RunFolder
from engine.run.sample_log import SampleLog
from finetune.config import FinetuneConfig
from finetune.evaluation.evaluations import Evaluations
from finetune.network.freezing import set_training_mode
from finetune.network.start import resolve_start
from finetune.task import Results, Task, load_task
from finetune.tasks import task_of_config

logger = logging.getLogger(__name__)


def train(config: FinetuneConfig) -> Results:
    """Fine-tune to the end, or to where a stop is asked for; return what was measured (main process only)."""
    make_task = load_task(task_of_config(config))
    start, data = resolve_start(config.backbone), make_task.open_data(config)
    engine = Engine(config.distributed)
    try:
        with RunFolder.open(config.run.folder, config=config, rank=engine.rank) as folder:
            task = make_task(config, start=start, data=data, engine=engine, folder=folder.path)
            untrained = task.untrained_results(folder)
            return _train(task, engine=engine, folder=folder) if untrained is None else untrained
    finally:
        engine.close()


def _train(task: Task, *, engine: Engine, folder: RunFolder) -> Results:
    config, data = task.config, task.data
    order = training_order(config.data, data.train, seed=config.run.seed, repeats=data.repeats)
    training = Training(
        config,
        engine=engine,
        folder=folder,
        model=task.build_model(),
        steps_per_epoch=order.steps_per_epoch,
        metadata=task.metadata(),
        shard_of=data.train.shard_of,
        fetch_patience_s=data.train.patience_s,
    )
    batches = micro_batches(task, order=order, training=training)
    evaluations = Evaluations(training, task=task)
    set_training_mode(engine.module)
    sample_log = SampleLog.open(folder.path, rank=engine.rank, enabled=config.report.samples, names=task.sample_columns)
    with training.saving_when_stopped(), sample_log as samples:
        for step in training.steps():
            for number in training.micro_batches:
                key = (step, number)
                batch = training.fetch(batches, key=key)
                losses = task.losses(training.forward, batch, key=key)
                training.backward(**losses)
                samples.note(step, number, batch)
            training.update()
            training.report()
            evaluations.run_if_due()
            training.save_if_due()
    if training.stopped:
        return []
    hand_off(task, training)
    return evaluations.finish()


def micro_batches(task: Task, *, order: TrainingOrder, training: Training) -> TrainingBatches:
    """Load this process's micro-batches from the step after the last one done."""
    return training_batches(
        task.data.train,
        order,
        task.batch_builder(),
        micro_batches=training.micro_batches,
        first_step=training.step,
        last_step=training.last_step,
        workers=task.config.data.workers,
        pin=training.engine.device.type == "cuda",
    )


def hand_off(task: Task, training: Training) -> None:
    """Write the last weights as folders that timm reads: backbone/, and backbone-ema/ if averaged (collective)."""
    _hand_off(task, training, weights="raw")
    if training.ema is not None:
        with training.ema.swap():
            _hand_off(task, training, weights="ema")


def _hand_off(task: Task, training: Training, *, weights: str) -> None:
    state = training.engine.full_state_dict()
    if not training.engine.is_main:
        return
    raw = training.folder.backbone
    folder = raw if weights == "raw" else raw.with_name(f"{raw.name}-{weights}")
    task.hand_off(folder, metadata=training.metadata, state=state, step=training.step, weights=f"last {weights}")
    logger.info("last %s weights: %s", weights, folder)
