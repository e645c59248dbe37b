"""The pretraining loop: fetch a micro-batch, encode its visible units, predict the masked ones, update."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbones.build import architecture, layout_spec
from backbones.ops.window_attention import usable_rule
from backbones.weights.handoff import write_backbone
from data.loading.loader import training_batches
from data.loading.mixing import training_order
from data.loading.order import TrainingOrder
from data.remote.locations import check_location
from data.shards.shard_set import ShardSet, open_shards
from engine.distributed.engine import Engine
from engine.loop.training import Training
from engine.recipe import plain
from engine.run.folder import RunFolder
from engine.run.sample_log import SampleLog
from pretrain.batches.micro_batch import PretrainBuilder
from pretrain.config import PretrainConfig
from pretrain.evaluation.probe import Probe, check_probe_shards
from pretrain.evaluation.reconstructions import draw_reconstructions
from pretrain.evaluation.report import write_report
from pretrain.model.activation_budget import keep_to_budget
from pretrain.model.greenmim import GreenMIM, build_model
from pretrain.model.model_inputs import model_inputs
from pretrain.targets.registry import PIXELS

logger = logging.getLogger(__name__)


def train(config: PretrainConfig) -> None:
    """Pretrain to the end, or to where a stop is asked for; resumes what the run folder holds."""
    check_locations(config)  # before the recipe is written down, and with it what may be a secret
    engine = Engine(config.distributed)
    try:
        with RunFolder.open(config.run.folder, config=config, rank=engine.rank) as folder:
            _train(config, engine=engine, folder=folder)
    finally:
        engine.close()


def check_locations(config: PretrainConfig) -> None:
    """Refuse places of shards that no shards can be read from, and URLs that hold what may be a secret.

    Raises:
        UserError: there is one.
    """
    for location in (*config.data.shards, config.probe.train_shards, config.probe.val_shards):
        check_location(location or "")


def _train(config: PretrainConfig, *, engine: Engine, folder: RunFolder) -> None:
    model = build_model(config)
    keep_to_budget(config, model, engine=engine)
    shards = open_shards(config.data.shards, cache=config.data.cache, labelled=False)
    num_classes = check_probe_shards(config)
    order = training_order(config.data, shards, seed=config.run.seed)
    training = Training(
        config,
        engine=engine,
        folder=folder,
        model=model,
        steps_per_epoch=order.steps_per_epoch,
        metadata=_metadata(config, model=model, shards=shards),
        shard_of=shards.shard_of,
        fetch_patience_s=shards.patience_s,
        per_forward=config.mim.micro_batches_per_forward,
    )
    if (rule := usable_rule(config.mim.grouping, engine.device)) != config.mim.grouping:
        logger.warning("windows are grouped by the rule %s: mim.grouping tiles is for GPUs with Triton", rule)
    batches = micro_batches(config, model=model, shards=shards, order=order, training=training)
    probe = Probe(config, num_classes=num_classes, training=training, floor=training.step == 0)
    sample_log = SampleLog.open(
        folder.path,
        rank=engine.rank,
        enabled=config.report.samples,
        names=("ids", "repeats", "crops", "predicted_units"),
    )
    with training.saving_when_stopped(), sample_log as samples:
        for step in training.steps():
            for group in training.groups():
                fetched = [training.fetch(batches, key=(step, number)) for number in group]
                losses = training.forward(**model_inputs(fetched))
                training.backward(losses)
                for number, batch in zip(group, fetched, strict=True):
                    samples.note(step, number, batch)
            training.update()
            training.report()
            if training.save_if_due():
                hand_off(config, training=training, folder=folder.path / f"backbone-step-{training.step:09d}")
            probe.run_if_due()
    finish(config, training=training, shards=shards)


def builder_of(config: PretrainConfig, model: GreenMIM) -> PretrainBuilder:
    """Configure what makes the micro-batches of a recipe, for a model on its device."""
    grouping = usable_rule(config.mim.grouping, next(model.parameters()).device)
    return PretrainBuilder(
        seed=config.run.seed,
        spec=layout_spec(model.encoder),
        mim=replace(config.mim, grouping=grouping),
        augment=config.augment,
        max_pixels=config.data.max_pixels,
        decode=config.data.decode,
    )


def micro_batches(
    config: PretrainConfig, *, model: GreenMIM, shards: ShardSet, order: TrainingOrder, training: Training
) -> Iterator[dict[str, Any]]:
    """Load this process's micro-batches from the step after the last one done."""
    return training_batches(
        shards,
        order,
        builder_of(config, model),
        micro_batches=training.micro_batches,
        first_step=training.step,
        last_step=training.last_step,
        workers=config.data.workers,
        pin=training.engine.device.type == "cuda",
    )


def finish(config: PretrainConfig, *, training: Training, shards: ShardSet) -> None:
    """Hand the backbone off, draw reconstructions and write the report, unless the run was only stopped."""
    if training.stopped:
        return
    hand_off(config, training=training, folder=training.folder.backbone)
    state = training.engine.full_state_dict()
    if not training.engine.is_main:
        return
    if config.mim.target == PIXELS:
        model = build_model(config, model_args=training.metadata["model_args"])
        model.load_state_dict(state)
        draw_reconstructions(model, builder=builder_of(config, model), shards=shards, folder=training.folder.path)
    write_report(training.folder.path)
    logger.info("report: %s", training.folder.report)


def hand_off(config: PretrainConfig, *, training: Training, folder: Path) -> None:
    """Write the encoder as a backbone folder that timm reads."""
    state = training.engine.full_state_dict()
    if not training.engine.is_main:
        return
    prefix = "encoder."
    metadata = training.metadata
    write_backbone(
        folder,
        architecture=metadata["architecture"],
        model_args=metadata["model_args"],
        state={name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)},
        mean=config.augment.mean,
        std=config.augment.std,
        img_size=config.backbone.img_size,
        provenance={
            "method": "GreenMIM" if config.mim.encoder == "visible" else "dense masked image modelling",
            "step": training.step,
            "images_seen": training.step * config.data.batch_size,
            "manifest_digest": metadata["manifest_digest"],
            "recipe": metadata["recipe"],
            "environment": json.loads(training.folder.environment.read_text())[-1],
        },
    )
    logger.info("backbone: %s", folder)


def _metadata(config: PretrainConfig, *, model: GreenMIM, shards: ShardSet) -> dict[str, Any]:
    """Name what every checkpoint says of its network, its data and its recipe."""
    name, model_args = architecture(model.encoder)
    return {
        "architecture": name,
        "model_args": model_args,
        "manifest_digest": shards.manifest.digest,
        "shards_per_folder": [len(part) for part in shards.parts],
        "recipe": plain(config),
    }
