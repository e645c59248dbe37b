"""Which way of running the step on visible tokens is fastest?

    python benchmarks/steps/step_variants.py --device cuda

The same network and images, one thing changed at a time: how windows are grouped and attention is computed,
torch.compile, the step recorded as a CUDA graph, several micro-batches in one forward pass, and fp8; beside them the
dense step, plain and compiled. Each way is timed in turn with the first one, as in ``benchmarks/steps/step.py``; on a
CPU only the ways that exist there. Compilations are not timed.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from backbones.visible.layout import Rule
from benchmarks.device_times import seconds_of
from benchmarks.goals import finish, machine
from benchmarks.kernels.cuda_graphs import recorded
from benchmarks.steps import step
from engine.distributed.cpu import keep_freed_memory
from engine.distributed.float8 import CAPABILITY, use_float8
from pretrain.model.greenmim import GreenMIM
from pretrain.model.model_inputs import model_inputs

STACK = 4
WARM_UP = 3
Build = Callable[[step.Case, argparse.Namespace], Callable[[], Any]]


def main() -> None:
    """Measure the ways that exist on the device and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[*step.CASES, *step.LARGER_CASES], default="swin_base_w7_r0.75")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--micro-batch", type=int, help="images; default: 8 on a CPU, 64 on a GPU")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each way, in turn")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="build no other way after so many")
    parser.add_argument(
        "--ways", nargs="+", choices=[*CPU_WAYS, *GPU_WAYS], metavar="WAY", help="default: all of the device"
    )
    options = parser.parse_args()
    options.micro_batch = options.micro_batch or step.MICRO_BATCH[options.device]
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    case = {**step.CASES, **step.LARGER_CASES}[options.case]
    figures: dict[str, Any] = {
        "machine": machine(),
        "device": step.device_name(options.device),
        "case": options.case,
        "micro_batch": options.micro_batch,
        "ways": {},
    }
    for name, result in measured(case, options=options):
        figures["ways"][name] = result
        finish(figures, [], check=False)  # after each, since compilers may take longer than there is time


def measured(case: step.Case, *, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Time each way in turn with the first: images per second, and how many times as many as the first way's."""
    started, first = time.monotonic(), None
    for name, build in ways_on(options.device).items():
        if name not in (options.ways or [name]) or time.monotonic() - started > options.seconds:
            continue
        run = build(case, options)
        first = first or run
        for _ in range(WARM_UP):
            run()
        device, times = torch.device(options.device), {"first": list[float](), "own": list[float]()}
        for _ in range(options.rounds):
            times["first"].append(seconds_of(first, device=device))
            times["own"].append(seconds_of(run, device=device))
        images = options.micro_batch * (STACK if "stack" in name else 1)
        rates = options.micro_batch / median(times["first"]), images / median(times["own"])
        yield name, {"images_per_s": rates[1], "of_the_first": rates[1] / rates[0]}


def ways_on(device: str) -> dict[str, Build]:
    """List the ways that exist on a device, those that compile last."""
    if device == "cpu":
        return CPU_WAYS
    return {name: way for name, way in GPU_WAYS.items() if "fp8" not in name or _has_fp8()}


def visible(*, rule: Rule, compiled: bool = False, graph: bool = False, stack: int = 1, fp8: bool = False) -> Build:
    """Make the function that builds a way of running the step on visible tokens."""

    def build(case: step.Case, options: argparse.Namespace) -> Callable[[], Any]:
        model, _, batches = step.build(case, options=options, rule=rule)
        if fp8:
            use_float8(model)
        if compiled:
            model.compile()
        numbers = iter(range(10**9))

        def group() -> list[dict[str, Any]]:
            first = next(numbers) * stack
            return [batches[(first + number) % step.MASKS] for number in range(stack)]

        if not graph:
            return lambda: _step(model, group(), options)
        fixed = group()
        return recorded(lambda: _step(model, fixed, options, clear=False), model)

    return build


def dense(*, compiled: bool = False) -> Build:
    """Make the function that builds the dense step."""

    def build(case: step.Case, options: argparse.Namespace) -> Callable[[], Any]:
        _, model, batches = step.build(case, options=options)
        if compiled:
            model.compile()
        return lambda: _step(model, batches[:1], options)

    return build


def _step(model: GreenMIM, group: list[dict[str, Any]], options: argparse.Namespace, *, clear: bool = True) -> Tensor:
    if clear:
        model.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=options.device == "cuda", cache_enabled=clear):
        loss = model(**model_inputs(group)).mean()
    loss.backward()
    return loss.detach()


def _has_fp8() -> bool:
    is_installed = importlib.util.find_spec("torchao") is not None
    return is_installed and torch.cuda.get_device_capability() >= CAPABILITY


CPU_WAYS: dict[str, Build] = {
    "groups": visible(rule="optimal"),
    f"groups, stack of {STACK}": visible(rule="optimal", stack=STACK),
    "dense": dense(),
    "groups, compiled": visible(rule="optimal", compiled=True),
    "dense, compiled": dense(compiled=True),
}
GPU_WAYS: dict[str, Build] = {
    "groups": visible(rule="optimal"),
    "dense": dense(),
    "tiles": visible(rule="tiles"),
    f"tiles, stack of {STACK}": visible(rule="tiles", stack=STACK),
    "tiles, compiled": visible(rule="tiles", compiled=True),
    "tiles, graph": visible(rule="tiles", graph=True),
    "tiles, compiled, graph": visible(rule="tiles", compiled=True, graph=True),
    "tiles, compiled, fp8": visible(rule="tiles", compiled=True, fp8=True),
    f"tiles, stack of {STACK}, compiled": visible(rule="tiles", stack=STACK, compiled=True),
    "dense, compiled": dense(compiled=True),
}
"""Without groups, compiled: shapes that change from mask to mask take a compiler minutes."""


if __name__ == "__main__":
    main()
