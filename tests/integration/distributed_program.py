"""What ``test_distributed.py`` launches: train a tiny model in one mode after another, in one process start.

Each argument is one job, ``mode:first-last[:from=FOLDER]:to=FOLDER``, for example ``zero1-fp32:3-6:from=a:to=b``: load
the state in folder a, run steps 3 to 5, write the state to folder b. A folder holds ``rank-N.pt`` (slices),
``weights.pt`` (all weights), ``averaged.pt`` and ``norms.json``. The slices are the whole state: a resuming job starts
from other random weights.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.config import DistributedConfig
from engine.distributed import deepspeed_zero
from engine.distributed.engine import Engine
from engine.loop.ema import SlicedEma

BATCHES_PER_STEP, BATCH, WIDTH, CLIP = 4, 5, 7, 0.25
LRS = (0.01, 0.02, 0.03)


class Tiny(nn.Module):
    """Odd sizes, normalisation, a frozen parameter: what partitions could get wrong."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Linear(WIDTH, 13, bias=False), nn.BatchNorm1d(13), nn.GELU(), nn.Linear(13, 11), nn.LayerNorm(11)
        )
        self.head = nn.Linear(11, 3)
        self.scale = nn.Parameter(torch.randn(5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(self.body(x)) * self.scale[:3]).square().mean()


def micro_batch(step: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + number)
    return torch.randn(BATCH, WIDTH, generator=generator) * (1 + number)


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1 and len(p) > 3], "weight_decay": 0.0},
        {
            "params": [p for p in trained if p.ndim <= 1 and len(p) <= 3],
            "weight_decay": 0.2,
        },  # fewer elements than processes
    ]
    return torch.optim.AdamW(groups, lr=0.5, betas=(0.9, 0.95), fused=True)


class State:
    """The slices that any number of processes wrote into a folder."""

    def __init__(self, folder: Path) -> None:
        self._full: dict[tuple[str, str], Tensor] = {}
        self._filled: dict[tuple[str, str], Tensor] = {}
        self.shapes: dict[str, list[int]] = {}
        for path in sorted(folder.glob("rank-*.pt")):
            for kind, name, shape, offset, values in torch.load(path, weights_only=True):
                key = kind, name
                size = int(torch.Size(shape).numel())
                self._full.setdefault(key, torch.zeros(size, dtype=values.dtype))[offset : offset + len(values)] = (
                    values
                )
                self._filled.setdefault(key, torch.zeros(size))[offset : offset + len(values)] += 1
                self.shapes[name] = shape
        for key, filled in self._filled.items():
            if not bool((filled == 1).all()):
                raise AssertionError(f"{key} is not covered exactly once: {filled.tolist()}")

    def names(self) -> dict[str, set[str]]:
        return {kind: {name for other, name in self._full if other == kind} for kind, _ in self._full}

    def read(self, kind: str, name: str, offset: int, length: int) -> Tensor:
        return self._full[kind, name][offset : offset + length]

    def load_weights(self, model: nn.Module) -> None:
        weights = {
            name: x.view(self.shapes[name]) for (kind, name), x in self._full.items() if kind in ("weight", "buffer")
        }
        model.load_state_dict(weights)


def config_of(mode: str) -> DistributedConfig:
    engine, precision = mode.split("-")
    stage = int(engine[4:]) if engine.startswith("zero") else 1
    kind = "deepspeed" if engine.startswith("zero") else engine
    return DistributedConfig(engine=kind, zero_stage=stage, precision=precision)  # pyright: ignore[reportArgumentType]


def run_job(job: str) -> Engine:
    mode, steps, *rest = job.split(":")
    options = dict(option.split("=") for option in rest)
    first, last = map(int, steps.split("-"))
    engine = Engine(config_of(mode))
    # a seed that differs where a job resumes, so that weights which were not loaded show
    model = engine.place(Tiny(seed=first + 1))
    state = State(Path(options["from"])) if "from" in options else None
    if state is not None:
        state.load_weights(model)
    own = BATCHES_PER_STEP // engine.world_size
    engine.prepare(model, optimizer_of(model), micro_batches=own, micro_batch_size=BATCH, clip_grad_norm=CLIP)
    ema = SlicedEma(engine, decay=0.9)
    if state is not None:
        engine.load_optimizer(state.read, optimizer_steps=first)
        ema.load(state.read)
    norms: list[Tensor] = []
    for step in range(first, last):
        for index in range(own):
            last = index == own - 1
            loss = engine.forward(micro_batch(step, engine.rank * own + index).to(engine.device), last=last)
            engine.backward(loss, last=last)
            check_summed_last(engine, last)
        norms.append(engine.step([lr / (1 + step) for lr in LRS]))
        ema.update()
        evaluate(engine, ema)
        check_partitioned(engine, mode)
    check_collectives(engine)
    save(engine, ema, norms, Path(options["to"]))
    return engine


def check_collectives(engine: Engine) -> None:
    rank, world_size = engine.rank, engine.world_size
    mine = torch.full((rank + 1, 2), rank, device=engine.device)  # another length on every process
    gathered = [row for other in range(world_size) for row in [[other, other]] * (other + 1)]
    assert engine.gather(mine).tolist() == gathered
    assert engine.average({"rank": torch.tensor(float(rank)), "one": 1}) == {"rank": (world_size - 1) / 2, "one": 1.0}
    assert engine.any(rank == world_size - 1)
    assert not engine.any(False)
    assert engine.broadcast_object({"from": rank}) == {"from": 0}


def check_summed_last(engine: Engine, last: bool) -> None:
    """DDP must sum over processes once a step, not after every micro-batch."""
    if engine.kind == "ddp" and engine.world_size > 1:
        gradient = next(parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None)
        everyone = engine.gather(gradient.flatten()[:1].double())
        assert (len(set(everyone.tolist())) == 1) == last, everyone


def check_partitioned(engine: Engine, mode: str) -> None:
    """ZeRO-3 must really hold parts, else nothing here would test it."""
    gathered = engine.module.get_submodule("head").get_parameter("weight").numel() > 0
    assert gathered == (not mode.startswith("zero3")), mode


def evaluate(engine: Engine, ema: SlicedEma) -> None:
    """Use the averaged weights, and the module itself, between steps: nothing of it may show in the training."""
    engine.module.eval()
    body: Any = engine.module.body
    x = micro_batch(0, 0).to(engine.device).to(next(iter(engine.module.buffers())).dtype)
    with torch.no_grad():
        before = engine.module(x)
        with ema.swap():
            averaged = engine.module(x)
        after = engine.module(x)
        part = body[3](body[:3](x))
    assert len(part) == len(x)
    engine.module.train()
    assert torch.equal(before, after), (before, after)
    assert not torch.equal(before, averaged)
    assert all(torch.equal(before, other) for other in engine.gather(before[None]))


def save(engine: Engine, ema: SlicedEma, norms: list[Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    slices = engine.state_slices() + ema.slices()
    rows = [(s.kind, s.name, list(s.shape), s.offset, s.values.detach().cpu().clone()) for s in slices]
    torch.save(rows, folder / f"rank-{engine.rank}.pt")
    weights = engine.full_state_dict()
    with ema.swap():
        averaged = engine.full_state_dict()
    if engine.is_main:
        torch.save(weights, folder / "weights.pt")
        torch.save(averaged, folder / "averaged.pt")
        (folder / "norms.json").write_text(json.dumps([float(norm) for norm in norms]))
    else:
        assert weights == {}
    engine.barrier()
    check_coverage(folder, engine.module)
    engine.barrier()


def check_coverage(folder: Path, module: nn.Module) -> None:
    """Refuse slices that leave out or repeat an element (the latter in ``State``)."""
    state = State(folder)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    weights = trained | {"scale"}
    buffers = set(module.state_dict()) - weights
    expected = {"weight": weights, "ema": weights, "exp_avg": trained, "exp_avg_sq": trained, "buffer": buffers}
    assert state.names() == expected, state.names()


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    deepspeed_zero.PERSISTENT_ELEMENTS = 20  # so that ZeRO-3 partitions the matrices of this model
    *others, last = sys.argv[1:]
    for job in others:
        run_job(job)
    run_job(last).close()


if __name__ == "__main__":
    main()
