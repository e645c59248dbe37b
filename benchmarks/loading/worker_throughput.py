"""Do loader workers keep up with a GPU? ``python benchmarks/loading/worker_throughput.py SHARDS``.

Takes what one worker does for a micro-batch of a pretraining recipe apart, in processor time: reading and cropping the
images, the mask, and the plan of all groups. A GPU is taken to reach the share of its peak that is asked for on the
operations that a step must do, so what it wants is calculated, and what workers give is measured.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.build import layout_spec
from backbones.config import BackboneConfig
from benchmarks.goals import Goal, finish, machine
from data.config import DataConfig
from data.loading.loader import training_batches
from data.loading.mixing import training_order
from data.shards.shard_set import open_shards
from pretrain.batches.micro_batch import PretrainBuilder
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import GreenMIM, build_model
from pretrain.model.model_inputs import random_inputs

GPUS = {"A100": 312e12, "H100": 989e12}
"""Dense bf16 FLOP/s on paper."""
SHARE = 0.45
"""Of the peak, which a step is to reach."""
WORKERS = 12


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder with a manifest")
    parser.add_argument("--network", default="swin_base_patch4_window7_224")
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--micro-batches", type=int, default=8, help="that are read")
    parser.add_argument("--masks", type=int, default=200, help="that are planned")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = PretrainConfig(
        data=DataConfig(
            shards=(options.shards,), batch_size=options.micro_batch, micro_batch_size=options.micro_batch, workers=0
        ),
        backbone=BackboneConfig(name=options.network),
    )
    model = build_model(config)
    plans = {rule: planning_s(config, model, rule, masks=options.masks) for rule in ("optimal", "tiles")}
    whole = reading_s(config, model, micro_batches=options.micro_batches)
    flops = step_flops(config, model)
    worker_rate = options.micro_batch / whole
    gpu_rates = {name: SHARE * peak / flops for name, peak in GPUS.items()}
    figures = {
        "machine": machine(),
        "network": options.network,
        "micro_batch": options.micro_batch,
        "worker_images_per_s": worker_rate,
        f"{WORKERS}_workers_images_per_s": WORKERS * worker_rate,
        "planning_ms": {rule: 1000 * mean(times) for rule, times in plans.items()},
        "planning_share": {rule: mean(times) / whole for rule, times in plans.items()},
        "planning_worst_ms": {rule: 1000 * max(times) for rule, times in plans.items()},
        "gflop_per_image": flops / 1e9,
        "gpu_images_per_s": gpu_rates,
        "workers_needed": {name: rate / worker_rate for name, rate in gpu_rates.items()},
    }
    needed = figures["workers_needed"]["A100"]
    goal = Goal(name="workers that an A100 needs at 45 % of its peak", value=needed, at_most=WORKERS)
    finish(figures, [goal], check=True)


def planning_s(config: PretrainConfig, model: GreenMIM, rule: Any, *, masks: int) -> list[float]:
    """Time the mask and the plan of each of so many micro-batches, in seconds; plans of earlier ones are kept."""
    build = _builder(replace(config, mim=replace(config.mim, grouping=rule)), model)
    build.of_mask(masks, 0)
    return [_cpu_s(lambda number=number: build.of_mask(number, 0)) for number in range(masks)]


def reading_s(config: PretrainConfig, model: GreenMIM, *, micro_batches: int) -> float:
    """Time a worker's micro-batch, its plan included, in seconds: the mean after one for warm-up."""
    shards = open_shards(config.data.shards, cache=config.data.cache)
    batches = training_batches(
        shards,
        training_order(config.data, shards, seed=0),
        _builder(config, model),
        micro_batches=range(1),
        first_step=0,
        last_step=micro_batches + 1,
        workers=0,
        pin=False,
    )
    next(batches)
    return _cpu_s(lambda: list(batches)) / micro_batches


def step_flops(config: PretrainConfig, model: GreenMIM) -> float:
    """Count the floating-point operations of products of matrices in a step, per image."""
    images = 2
    inputs = random_inputs(config, model, masks=[0], images=images)
    with FlopCounterMode(display=False) as counter:
        model(**inputs).backward()
    return counter.get_total_flops() / images


def _builder(config: PretrainConfig, model: GreenMIM) -> PretrainBuilder:
    return PretrainBuilder(
        seed=0, spec=layout_spec(model.encoder), mim=config.mim, augment=config.augment, max_pixels=10**9
    )


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
