"""A run small enough for many tests: the real ``Training`` around two layers, on numbers made from their key."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.config import DataConfig
from engine.checkpoint.slices import Kind
from engine.checkpoint.store import newest_checkpoint
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from engine.distributed.engine import Engine
from engine.loop.training import Training
from engine.run.folder import RunFolder
from engine.run.sample_log import SampleLog
from engine.terms import MicroBatchKey

KINDS: tuple[Kind, ...] = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")
MICRO_BATCHES, MICRO_BATCH_SIZE, WIDTH, STEPS = 4, 3, 5, 8


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    data: DataConfig
    optimizer: OptimizerConfig
    run: RunConfig
    report: ReportConfig
    distributed: DistributedConfig


def config_of(folder: Path, **sections: dict[str, Any]) -> TinyConfig:
    batch_size = MICRO_BATCHES * MICRO_BATCH_SIZE
    base = TinyConfig(
        data=DataConfig(shards=("none",), batch_size=batch_size, micro_batch_size=MICRO_BATCH_SIZE),
        optimizer=OptimizerConfig(base_lr=0.05, lr_batch_size=batch_size, steps=STEPS, warmup_steps=1, ema_decay=0.9),
        run=RunConfig(folder=folder, save_every_steps=3),
        report=ReportConfig(tensorboard=False, every_steps=2, samples=True),
        distributed=DistributedConfig(precision="fp32"),
    )
    return replace(base, **{name: replace(getattr(base, name), **fields) for name, fields in sections.items()})


class TinyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(WIDTH, 7, bias=False), nn.BatchNorm1d(7), nn.GELU())
        self.head = nn.Linear(7, 2)

    def forward(self, *micro_batches: Tensor) -> Tensor:
        return torch.stack([self.head(self.body(x)).square().mean() for x in micro_batches])


def numbers(key: MicroBatchKey) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * key[0] + key[1])
    return torch.randn(MICRO_BATCH_SIZE, WIDTH, generator=generator)


class TinyBatches:
    """Micro-batches that can begin again; those in ``poisoned`` hold numbers that no network stands."""

    def __init__(self, training: Training, *, poisoned: frozenset[MicroBatchKey] = frozenset()) -> None:
        self._training, self._poisoned = training, poisoned
        self.restart(first_step=training.step, skip=())

    def restart(self, *, first_step: int, skip: Any) -> None:
        numbers = self._training.micro_batches
        keys = ((step, n) for step in range(first_step, self._training.last_step) for n in numbers)
        self._keys = (key for key in keys if key not in skip)

    def __iter__(self) -> "TinyBatches":
        return self

    def __next__(self) -> dict[str, Any]:
        key = next(self._keys)
        x = numbers(key)
        if key in self._poisoned:
            x[1] = 3e38
        first = (key[0] * MICRO_BATCHES + key[1]) * MICRO_BATCH_SIZE
        ids = torch.arange(first, first + MICRO_BATCH_SIZE)
        return {"x": x, "ids": ids, "keys": tuple(f"picture-{i}" for i in ids.tolist()), "bad": [], "reading": NoCost()}


class NoCost:
    def __add__(self, other: Any) -> "NoCost":
        return self

    def metrics(self) -> dict[str, float]:
        return {}


def run_tiny(
    config: TinyConfig,
    *,
    poisoned: Any = (),
    until: int | None = None,
    before_step: Any = lambda training, step: None,
    per_forward: int = 1,
) -> Training:
    """Train to the end, or ``until`` so many steps are done, as after a kill: nothing more is saved."""
    engine = Engine(config.distributed)
    try:
        with RunFolder.open(config.run.folder, config=config, rank=engine.rank) as folder:
            training = Training(
                config,
                engine=engine,
                folder=folder,
                model=TinyNet(),
                steps_per_epoch=STEPS,
                metadata={"architecture": "tiny"},
                shard_of=lambda sample: f"shard-{sample // 10}.tar",
                per_forward=per_forward,
            )
            batches = TinyBatches(training, poisoned=frozenset(poisoned))
            sample_log = SampleLog.open(folder.path, rank=engine.rank, enabled=config.report.samples, names=("ids",))
            with training.saving_when_stopped(), sample_log as samples:
                for step in training.steps():
                    before_step(training, step)
                    for group in training.groups():
                        fetched = [training.fetch(batches, key=(step, number)) for number in group]
                        training.backward(training.forward(*(batch["x"] for batch in fetched)))
                        for number, batch in zip(group, fetched, strict=True):
                            samples.note(step, number, batch)
                    training.update()
                    training.report()
                    training.save_if_due()
                    if until is not None and training.step >= until:
                        training.store.wait()
                        break
        return training
    finally:
        engine.close()


def tensors(folder: Path, *, step: int = STEPS) -> dict[tuple[str, str], Tensor]:
    """Everything in the checkpoint of the last step."""
    checkpoint = newest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == step
    return {(kind, name): checkpoint.read_full(kind, name) for kind in KINDS for name in checkpoint.names(kind)}


def same(one: Path, two: Path, *, step: int = STEPS) -> bool:
    a, b = tensors(one, step=step), tensors(two, step=step)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
