"""How much faster and leaner is a step on visible tokens than the dense one? ``python benchmarks/steps/step.py``.

Both steps are whole ones: encoder, decoder, loss, backward, of the same network on the same images, taken in turn in
one process. On a CPU: one thread, process CPU time, subnormals flushed and freed memory kept, as in training, on both
sides. On a GPU (``--device cuda``): bf16 autocast, CUDA events, peak memory beside weights, and the share of the
measured peak FLOP/s that is reached on the products of matrices that torch counts (those inside our own kernels are not
among them). The dense side runs timm's own forward. Activation bytes are what autograd saves for backward, each storage
once, parameters left out.

    torchrun --nproc-per-node 2 benchmarks/steps/step.py   wall time with all cores at work, where memory traffic counts
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from backbones.build import layout_spec
from backbones.config import BackboneConfig
from backbones.recompute.saved_bytes import saved_bytes
from backbones.visible.layout import Rule
from benchmarks.device_times import seconds_of
from benchmarks.goals import Goal, finish, machine
from benchmarks.kernels.device_limits import peak_bandwidth, peak_flops
from data.config import DataConfig
from engine.distributed.cpu import keep_freed_memory
from pretrain.batches.mask_inputs import mask_inputs
from pretrain.batches.masking import unit_mask
from pretrain.config import MimConfig, PretrainConfig
from pretrain.model.greenmim import GreenMIM, build_model
from pretrain.model.model_inputs import model_inputs


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and mask."""

    name: str
    window: int | None = None
    ratio: float = 0.75
    side: int = 224
    """Pixels."""


BASE, LARGE = "swin_base_patch4_window7_224", "swin_large_patch4_window7_224"
CASES = {
    "swin_base_w7_r0.75": Case(name=BASE, window=7),
    "swin_base_w7_r0.6": Case(name=BASE, window=7, ratio=0.6),
    "swin_base_w7_r0.5": Case(name=BASE, window=7, ratio=0.5),
    "swin_base_w14_r0.75": Case(name=BASE, window=14),
    "swin_tiny_w7_r0.75": Case(name="swin_tiny_patch4_window7_224", window=7),
    "secvit_small_r0.75": Case(name="secvit_small"),
}
LARGER_CASES = {
    "swin_base_w12_r0.75_384": Case(name=BASE, window=12, side=384),
    "swin_base_w16_r0.75_512": Case(name=BASE, window=16, side=512),
    "swin_base_w16_r0.6_512": Case(name=BASE, window=16, side=512, ratio=0.6),
    "swin_large_w14_r0.75": Case(name=LARGE, window=14),
    "vit_base_r0.75": Case(name="vit_base_patch16_224"),
}
"""Measured on GPUs only, unless asked for."""
GOALS: dict[str, dict[str, dict[str, float]]] = {
    "cpu": {
        "swin_base_w7_r0.75": {"speedup": 3.7, "bytes_ratio": 0.22},
        "swin_base_w7_r0.6": {"speedup": 2.3},
        "secvit_small_r0.75": {"speedup": 2.2},
    },
    "cuda": {
        "swin_base_w7_r0.75": {"speedup": 3.5, "memory_ratio": 0.28, "flops_share": 0.45},
        "swin_base_w16_r0.75_512": {"speedup": 3.5, "memory_ratio": 0.28},
    },
}
"""Device, case, figure: the bound that it must keep."""
AT_LEAST = {"speedup": "dense over sparse step time", "flops_share": "share of the peak FLOP/s"}
AT_MOST = {
    "bytes_ratio": "sparse over dense saved activation bytes",
    "memory_ratio": "sparse over dense peak memory",
}
MICRO_BATCH = {"cpu": 8, "cuda": 64}
"""Recipes have 32 to 64: fewer rows make matrix products slower on visible tokens (12 an image in the last stage)."""
MASKS = 8


def main() -> None:
    """Measure the cases and print the figures."""
    options = _options()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    on_gpu = options.device == "cuda"
    every = {**CASES, **LARGER_CASES}
    names = options.cases or (every if on_gpu else CASES)
    options.micro_batch = options.micro_batch or MICRO_BATCH[options.device]
    figures: dict[str, Any] = {
        "machine": machine(),
        "device": device_name(options.device),
        "micro_batch": options.micro_batch,
        "micro_batches_per_forward": options.micro_batches_per_forward,
    }
    if on_gpu:
        figures["peak_flops_per_s"] = peak_flops(torch.device("cuda"))
        figures["peak_bytes_per_s"] = peak_bandwidth(torch.device("cuda"))
    started, figures["cases"], figures["out_of_memory"] = time.monotonic(), {}, []
    for name in names:
        if time.monotonic() - started > options.seconds:
            break
        try:
            result = measure(every[name], options=options)
        except torch.OutOfMemoryError:
            figures["out_of_memory"].append(name)
            continue
        if on_gpu:
            result["flops_share"] = result["flops_per_s_sparse"] / figures["peak_flops_per_s"]
            torch.cuda.empty_cache()
        figures["cases"][name] = result
        if not dist.is_initialized():
            finish(figures, [], check=False)  # a later case may take longer than there is time
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    goals = [goal for name, result in figures["cases"].items() for goal in _goals(name, result, device=options.device)]
    finish(figures, goals, check=not options.no_goal)


def _goals(name: str, result: dict[str, float], *, device: str) -> list[Goal]:
    bounds = GOALS[device].get(name, {})
    least = [
        Goal(name=f"{name}: {AT_LEAST[figure]}", value=result[figure], at_least=bound)
        for figure, bound in bounds.items()
        if figure in AT_LEAST
    ]
    most = [
        Goal(name=f"{name}: {AT_MOST[figure]}", value=result[figure], at_most=bound)
        for figure, bound in bounds.items()
        if figure in AT_MOST
    ]
    return [*least, *most]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *LARGER_CASES], help="default: all of the device")
    parser.add_argument("--micro-batch", type=int, help="images; default: 8 on a CPU, 64 on a GPU")
    parser.add_argument("--micro-batches-per-forward", type=int, default=1, help="of the step on visible tokens")
    parser.add_argument("--rounds", type=int, default=5, help="timed pairs of steps per case, after one for warm-up")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other case after so many")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


def build(
    case: Case, *, options: argparse.Namespace, rule: Rule = "optimal"
) -> tuple[GreenMIM, GreenMIM, list[dict[str, Any]]]:
    """Build the network for visible tokens, the same for all, and micro-batches with masks of their own."""
    config = PretrainConfig(
        data=DataConfig(shards=("",), batch_size=options.micro_batch, micro_batch_size=options.micro_batch),
        backbone=BackboneConfig(name=case.name, window=case.window, img_size=(case.side, case.side)),
        mim=MimConfig(mask_ratio=case.ratio),
    )
    device = torch.device(options.device)
    sparse = build_model(config).to(device)
    dense = build_model(replace(config, mim=replace(config.mim, encoder="dense"))).to(device)
    spec, batches = layout_spec(sparse.encoder), []
    for number in range(MASKS):
        mask = unit_mask(spec.units, mask_ratio=case.ratio, seed=0, step=number, micro_batch=0)
        of_mask = mask_inputs(spec, mask, mask.visible_units, rule=rule)
        images = torch.randint(256, (options.micro_batch, 3, *spec.img_size), dtype=torch.uint8, device=device)
        batches.append({"images": images, **{name: x.to(device) for name, x in of_mask.items()}})
    return sparse, dense, batches


def measure(case: Case, *, options: argparse.Namespace) -> dict[str, float]:
    """Measure one case: medians and their ratios."""
    sparse, dense, batches = build(case, options=options)
    device = torch.device(options.device)
    times: dict[str, list[float]] = {"sparse": [], "dense": [], "encoder_sparse": [], "encoder_dense": []}
    for number in range(options.rounds + 1):
        runs = sides(sparse, dense, batches=batches, first=number, options=options)
        for name in times:
            seconds = _timed(runs[name], device)
            if number:
                times[name].append(seconds)
    runs = sides(sparse, dense, batches=batches, first=0, options=options)
    figures = {f"seconds_{name}": median(values) for name, values in times.items()}
    figures["images_per_s"] = options.micro_batch * options.micro_batches_per_forward / figures["seconds_sparse"]
    figures["speedup"] = figures["seconds_dense"] / figures["seconds_sparse"]
    figures["encoder_speedup"] = figures["seconds_encoder_dense"] / figures["seconds_encoder_sparse"]
    for name, model in (("sparse", sparse), ("dense", dense)):
        figures[f"saved_bytes_{name}"] = float(saved_bytes(model, lambda: runs[f"forward_{name}"]()))  # noqa: B023
    figures["bytes_ratio"] = figures["saved_bytes_sparse"] / figures["saved_bytes_dense"]
    return {**figures, **_gpu_figures(runs, seconds=figures["seconds_sparse"])} if device.type == "cuda" else figures


def sides(
    sparse: GreenMIM, dense: GreenMIM, *, batches: list[dict[str, Any]], first: int, options: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Make whole steps of both models on the same images, their encoders' steps, and their forward passes."""
    size = options.micro_batches_per_forward
    group = [batches[(first * size + number) % MASKS] for number in range(size)]
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=options.device == "cuda")

    def forward_sparse() -> Tensor:
        with autocast:
            return sparse(**model_inputs(group)).mean()

    def forward_dense() -> Tensor:
        with autocast:
            return dense(**model_inputs([{**group[0], "images": _all_images(group)}]))

    def step(model: GreenMIM, forward: Callable[[], Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        forward().backward()

    def encode(model: GreenMIM, features: Callable[[], Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        with autocast:
            x = features()
        x.float().square().mean().backward()

    def visible() -> Tensor:
        inputs = model_inputs(group)
        return sparse.encode(sparse.pixels(inputs["images"]), inputs["layout"])

    return {
        "sparse": lambda: step(sparse, forward_sparse),
        "dense": lambda: step(dense, forward_dense),
        "encoder_sparse": lambda: encode(sparse, visible),
        "encoder_dense": lambda: encode(
            dense, lambda: dense.encoder.forward_features(dense.pixels(_all_images(group)))
        ),
        "forward_sparse": forward_sparse,
        "forward_dense": forward_dense,
    }


def _all_images(group: list[dict[str, Any]]) -> Tensor:
    return torch.cat([batch["images"] for batch in group])


def _gpu_figures(runs: dict[str, Callable[[], Any]], *, seconds: float) -> dict[str, float]:
    """Measure peak memory beside what lies there before a step, and the FLOP/s of the step on visible tokens."""
    figures: dict[str, float] = {}
    for name in ("sparse", "dense"):
        runs[name]()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        runs[name]()
        figures[f"peak_bytes_{name}"] = float(torch.cuda.max_memory_allocated() - before)
    figures["memory_ratio"] = figures["peak_bytes_sparse"] / figures["peak_bytes_dense"]
    with FlopCounterMode(display=False) as counter:
        runs["sparse"]()
    figures["flops_per_s_sparse"] = counter.get_total_flops() / seconds
    return figures


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    if dist.is_initialized():
        dist.barrier()
        start = time.perf_counter()
        run()
        dist.barrier()
        return time.perf_counter() - start
    return seconds_of(run, device=device)


def device_name(device: str) -> str:
    """Name the device that a figure is measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    if dist.is_initialized():
        return f"cpu, {dist.get_world_size()} processes of one thread, wall time"
    return "cpu, one thread, process time"


if __name__ == "__main__":
    main()
