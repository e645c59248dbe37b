"""Online probes: does the frozen encoder tell labelled images apart better than it did before?

kNN of masked-image features is weak early and may fall below its two floors (a random network, 8x8 raw pixels) while a
linear probe rises; so all four are written, one line of ``probes.jsonl`` a probe.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.loading.evaluation import EvaluationBuilder
from data.loading.loader import evaluation_batches
from data.shards.labelled import check_labels, check_same_classes
from data.shards.shard_set import ShardSet, open_shards
from engine.loop.training import Training
from engine.pixels import Pixels
from engine.probes import extract_features, knn_accuracy, linear_probe_accuracy, pixel_features
from engine.run.durable import append, write_durably
from engine.run.folder import is_until
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import bare_encoder

logger = logging.getLogger(__name__)

PROBE_MICRO_BATCH = 64


class Probe:
    """Runs the probes that a recipe asks for."""

    def __init__(self, config: PretrainConfig, *, num_classes: int, training: Training, floor: bool) -> None:
        self._config, self._num_classes, self._training = config, num_classes, training
        self._file = training.folder.path / "probes.jsonl"
        self._forget_later_than(training.step)
        if config.probe.every_steps is not None and floor:
            self._write({"step": 0, **self._accuracies(), **self._pixel_floor()})

    def run_if_due(self) -> None:
        """Probe the encoder if the step asks for it; every process takes part."""
        every, step = self._config.probe.every_steps, self._training.step
        if every is None or (step % every and step != self._training.last_step):
            return
        if not self._training.check_finite():  # the run goes back, and does this step again
            return
        self._forget_later_than(
            step - 1
        )  # a run that went back (engine/faults/non_finite_recovery.py) does steps again
        self._write({"step": step, **self._accuracies()})

    def _forget_later_than(self, step: int) -> None:
        """Drop the probes of steps that a resumed run does again."""
        if self._training.engine.is_main and self._file.exists():
            lines = self._file.read_bytes().splitlines(keepends=True)
            write_durably(self._file, b"".join(line for line in lines if is_until(line, step)))

    def _write(self, line: dict[str, Any]) -> None:
        if not self._training.engine.is_main:
            return
        logger.info("probe: %s", ", ".join(f"{key} {value:.4g}" for key, value in line.items()))
        append(self._file, json.dumps(line) + "\n")

    def _accuracies(self) -> dict[str, float]:
        engine = self._training.engine
        state = engine.broadcast_object(engine.full_state_dict())
        model_args = self._training.metadata["model_args"]
        encoder = plain_encoder(self._config, model_args=model_args, state=state).to(engine.device)
        train, val = self._features(encoder, self._train), self._features(encoder, self._val)
        accuracies = {"knn_accuracy": knn_accuracy(*train, *val, num_classes=self._num_classes)}
        if self._config.probe.linear:
            accuracies["linear_accuracy"] = linear_probe_accuracy(*train, *val, num_classes=self._num_classes)
        return accuracies

    def _pixel_floor(self) -> dict[str, float]:
        train, val = self._features(pixel_features, self._train), self._features(pixel_features, self._val)
        return {"knn_accuracy_of_pixels": knn_accuracy(*train, *val, num_classes=self._num_classes)}

    @property
    def _train(self) -> ShardSet:
        return open_probe_shards(self._config)[0]

    @property
    def _val(self) -> ShardSet:
        return open_probe_shards(self._config)[1]

    def _features(self, forward: Any, labelled: ShardSet) -> tuple[Tensor, Tensor]:
        """Collect features and labels of the samples, from all processes."""
        engine, config = self._training.engine, self._config
        batches = evaluation_batches(
            labelled,
            EvaluationBuilder(size=config.backbone.img_size, max_pixels=config.data.max_pixels),
            micro_batch_size=PROBE_MICRO_BATCH,
            rank=engine.rank,
            world_size=engine.world_size,
            workers=config.data.workers,
        )
        x, y = extract_features(forward, self._noted(batches), device=engine.device)
        return engine.gather(x).cpu(), engine.gather(y).cpu()

    def _noted(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            self._training.note_progress("probe")
            yield batch


def open_probe_shards(config: PretrainConfig) -> tuple[ShardSet, ShardSet]:
    """Open the shards that probes learn from and are measured on, of each the samples that are used."""
    train, val = config.probe.train_shards, config.probe.val_shards
    assert train is not None
    assert val is not None
    sets = (open_shards(shards, cache=config.data.cache) for shards in (train, val))
    first, second = (labelled.subset(range(min(config.probe.max_samples, labelled.num_samples))) for labelled in sets)
    return first, second


def check_probe_shards(config: PretrainConfig) -> int:
    """Refuse shards that no probe could learn from or be measured on; count their classes, 0 without probes.

    Raises:
        UserError: a sample has no label, or the two sets have other classes.
    """
    if config.probe.every_steps is None:
        return 0
    train, val = open_probe_shards(config)
    classes = train.classes or val.classes
    remedy = "write both with the same class folders"
    for option, shards in (("probe.train-shards", train), ("probe.val-shards", val)):
        check_labels(shards, num_classes=len(classes) if classes else None, option=option, remedy=remedy)
    check_same_classes(train, val, options=("probe.train-shards", "probe.val-shards"))
    return len(classes) if classes else 1 + int(max(train.labels().max(), val.labels().max()))


def plain_encoder(config: PretrainConfig, *, model_args: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """Build the dense encoder in evaluation mode with the weights of ``state``: pixels to pooled features."""
    encoder = bare_encoder(config, model_args)
    prefix = "encoder."
    encoder.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    model = nn.Sequential(Pixels(config.augment.mean, config.augment.std), encoder).eval()
    return model.to(torch.float32)
