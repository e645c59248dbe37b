"""What does less memory cost? A step under budgets for activations: ``python benchmarks/steps/recompute.py``.

For each share of what a forward pass keeps without a budget, ``mim.activation-gib`` is set to it, and a whole step
(forward, backward) on masks that were not measured is timed in turn with one that recomputes nothing, in one process:
one thread and process CPU time on a CPU, CUDA events and bf16 autocast on a GPU (``--device cuda``), where the memory
that torch allocates at most beside weights and gradients is also shown. Kept bytes are what autograd saves in the
forward pass, each storage once, parameters left out. Predicted time: the operations of a step with those computed again
over those without.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from backbones.config import BackboneConfig
from backbones.recompute.blocks import recompute_blocks
from backbones.recompute.costs import ForwardCost
from backbones.recompute.saved_bytes import saved_bytes
from benchmarks.device_times import seconds_of
from benchmarks.goals import Goal, finish, machine
from data.config import DataConfig
from pretrain.config import MimConfig, PretrainConfig
from pretrain.model.activation_budget import (
    GIB,
    MASKS,
    BudgetError,
    choose_blocks,
    forward_cost,
)
from pretrain.model.greenmim import GreenMIM, build_model
from pretrain.model.model_inputs import random_inputs

SHARES = (1.0, 0.75, 0.5, 0.3)
BACKWARD = 2
"""Operations of a backward pass over those of its forward pass."""


def main() -> None:
    """Measure the budgets and print the figures."""
    options = _options()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    config = PretrainConfig(
        data=DataConfig(shards=("",), batch_size=options.micro_batch, micro_batch_size=options.micro_batch),
        backbone=BackboneConfig(name=options.name, img_size=(options.side, options.side)),
        mim=MimConfig(mask_ratio=options.ratio),
    )
    model = build_model(config).to(device)
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda")
    costs: list[ForwardCost] = []
    measuring = seconds_of(lambda: costs.append(forward_cost(config, model, precision=precision)), device=device)
    (cost,) = costs
    budgets = {
        f"{share:.0%}": measure(config, model, cost, share=share, precision=precision, options=options)
        for share in options.shares
    }
    figures: dict[str, Any] = {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one thread, process time",
        "backbone": options.name,
        "micro_batch": options.micro_batch,
        "seconds_measuring": measuring,
        "bytes_unlimited": cost.bytes,
        "budgets": budgets,
    }
    goals = [
        Goal(name=f"{name}: kept over budget", value=result["kept_bytes"] / result["budget_bytes"], at_most=1.0)
        for name, result in budgets.items()
        if "kept_bytes" in result
    ]
    finish(figures, goals, check=not options.no_goal)


def measure(
    config: PretrainConfig,
    model: GreenMIM,
    cost: ForwardCost,
    *,
    share: float,
    precision: Callable[[], AbstractContextManager[Any]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measure bytes and times under a budget of ``share`` of what is kept without one, or say why there is none."""
    budget = share * cost.bytes / GIB
    try:
        choice = choose_blocks(replace(config, mim=replace(config.mim, activation_gib=budget)), cost)
    except BudgetError as error:
        return {"refused": str(error)}
    device = torch.device(options.device)
    kept_bytes: list[int] = []
    times: dict[str, list[float]] = {"all_kept": [], "recomputed": []}
    peaks: dict[str, list[int]] = {"all_kept": [], "recomputed": []}
    for number in range(options.rounds + 1):
        inputs = random_inputs(config, model, masks=[MASKS + number], images=options.micro_batch)

        def forward(inputs: dict[str, Any] = inputs) -> Any:
            with precision():
                return model(**inputs)

        for name, blocks in (("all_kept", ()), ("recomputed", choice.recomputed)):
            recompute_blocks(model, blocks)
            taken, peak = _step(model, forward, device=device)
            if number:
                times[name].append(taken)
                peaks[name].append(peak)
        kept_bytes.append(saved_bytes(model, forward))
    recompute_blocks(model, ())
    figures = {
        "budget_bytes": int(share * cost.bytes),
        "kept_bytes": max(kept_bytes),
        "kept_bytes_planned": choice.kept,
        "peak_bytes_planned": choice.peak,
        "blocks_recomputed": len(choice.recomputed),
        "blocks": len(cost.blocks),
        "time_predicted": 1 + choice.flops / ((1 + BACKWARD) * cost.flops),
        "time": median(times["recomputed"]) / median(times["all_kept"]),
        **{f"seconds_{name}": median(values) for name, values in times.items()},
    }
    if device.type == "cuda":
        figures |= {f"allocated_bytes_{name}": max(values) for name, values in peaks.items()}
    return figures


def _step(model: GreenMIM, forward: Callable[[], Any], *, device: torch.device) -> tuple[float, int]:
    """Time a step in seconds, and on a GPU measure the most bytes allocated beside what was there before."""
    for parameter in model.parameters():  # gradients are no activations: they are there before
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    taken = seconds_of(lambda: forward().sum().backward(), device=device)
    return taken, torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="swin_base_patch4_window7_224", help="timm's name of a backbone")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--ratio", type=float, default=0.75, help="share of mask units hidden")
    parser.add_argument("--micro-batch", type=int, default=4, help="images")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="budgets over what is kept without one")
    parser.add_argument("--rounds", type=int, default=5, help="timed pairs of steps per budget, after one for warm-up")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


if __name__ == "__main__":
    main()
