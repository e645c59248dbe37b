"""What does the trainer add to a model's own step? ``python benchmarks/steps/trainer_overhead.py``.

The same micro-batches, in memory, go through the pretraining network in turn: bare (forward, backward, AdamW) and as
the trainer does it (`engine/loop/training.py`: fetch, autocast, gradients divided, norm, schedules, reports to
metrics.jsonl and TensorBoard every ten steps, watchdog, stop checks). Process CPU time of one thread on a CPU, CUDA
events on a GPU. Reading and decoding are not in it: loader workers do that beside the training.
"""

import argparse
import itertools
import tempfile
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from backbones.build import layout_spec
from backbones.config import BackboneConfig
from benchmarks.device_times import seconds_of
from benchmarks.goals import Goal, finish, machine
from data.config import DataConfig
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from engine.distributed.engine import Engine
from engine.loop.optimizer import build_optimizer
from engine.loop.training import Training
from engine.run.folder import RunFolder
from pretrain.batches.micro_batch import PretrainBuilder
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import build_model
from pretrain.model.model_inputs import model_inputs

GOAL = 0.03
NETWORKS = {"swin_tiny": "swin_tiny_patch4_window7_224", "swin_base": "swin_base_patch4_window7_224"}
MASKS = 8


def main() -> None:
    """Measure both sides in turn and print the figures."""
    options = _options()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory(prefix="trainer-overhead-") as folder:
        result = measure(_config(options, Path(folder)), steps=options.steps)
    figures = {"machine": machine(), "network": options.network, "micro_batch": options.micro_batch, **result}
    goals = [Goal(name="trainer over bare step, minus 1", value=result["overhead"], at_most=GOAL)]
    finish(figures, goals, check=not options.no_goal)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="swin_tiny")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each side, after two for warm-up")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


def _config(options: argparse.Namespace, folder: Path) -> PretrainConfig:
    batch = options.micro_batch
    return PretrainConfig(
        data=DataConfig(shards=("none",), batch_size=batch, micro_batch_size=batch),
        backbone=BackboneConfig(name=NETWORKS[options.network]),
        optimizer=OptimizerConfig(steps=10**6, warmup_steps=1),
        run=RunConfig(folder=folder / "run", save_every_steps=10**6),
        report=ReportConfig(every_steps=10),
        distributed=DistributedConfig(precision="bf16" if torch.cuda.is_available() else "fp32"),
    )


def measure(config: PretrainConfig, *, steps: int) -> dict[str, float]:
    """Time a bare step and a trainer's in turn (median seconds), and what the trainer adds."""
    engine = Engine(config.distributed)
    bare = _bare_steps(config, engine)
    with RunFolder.open(config.run.folder, config=config, rank=0) as folder:
        trained = _trained_steps(config, engine, folder)
        times: dict[str, list[float]] = {"bare": [], "trainer": []}
        for number in range(steps + 2):
            for name, side in (("bare", bare), ("trainer", trained)):
                seconds = seconds_of(lambda side=side: next(side), device=engine.device)
                if number >= 2:
                    times[name].append(seconds)
        trained.close()
    engine.close()
    figures = {f"seconds_{name}": median(values) for name, values in times.items()}
    added = figures["seconds_trainer"] - figures["seconds_bare"]
    return {**figures, "milliseconds_added": 1000 * added, "overhead": added / figures["seconds_bare"]}


def _bare_steps(config: PretrainConfig, engine: Engine) -> Generator[None]:
    model = engine.place(build_model(config))
    optimizer = build_optimizer(model, config.optimizer, batch_size=config.data.batch_size)
    batches = itertools.cycle([_moved(batch, engine) for batch in _micro_batches(config)])
    while True:
        with engine.autocast():
            loss = model(**model_inputs([next(batches)]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def _trained_steps(config: PretrainConfig, engine: Engine, folder: RunFolder) -> Generator[None]:
    training = Training(
        config,
        engine=engine,
        folder=folder,
        model=build_model(config),
        steps_per_epoch=1,
        metadata={"architecture": config.backbone.name},
        shard_of=str,
    )
    batches = (dict(batch) for batch in itertools.cycle(_micro_batches(config)))
    for step in training.steps():
        batch = training.fetch(batches, key=(step, 0))
        training.backward(training.forward(**model_inputs([batch])))
        training.update()
        training.report()
        yield


def _micro_batches(config: PretrainConfig) -> list[dict[str, Any]]:
    spec = layout_spec(build_model(config).encoder)
    builder = PretrainBuilder(seed=0, spec=spec, mim=config.mim, augment=config.augment, max_pixels=1)
    images = torch.randint(256, (config.data.micro_batch_size, 3, *spec.img_size), dtype=torch.uint8)
    batches = [{"images": images, "bad": [], **builder.of_mask(number, 0)} for number in range(MASKS)]
    return [_pinned(batch) for batch in batches] if torch.cuda.is_available() else batches


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """Put a micro-batch into page-locked memory, as the loader does for a GPU."""
    return {name: value.pin_memory() if hasattr(value, "pin_memory") else value for name, value in batch.items()}


def _moved(batch: dict[str, Any], engine: Engine) -> dict[str, Any]:
    return {name: value.to(engine.device) if hasattr(value, "to") else value for name, value in batch.items()}


if __name__ == "__main__":
    main()
