"""How much faster and leaner is a step on visible tokens than the dense one? ``python benchmarks/step.py``.

Both steps are whole ones: encoder, decoder, loss, backward, of the same network on the same images, taken in turn in one
process. On a CPU: one thread, process CPU time, subnormals flushed on both sides. On a GPU (``--device cuda``): bf16
autocast, CUDA events, peak memory and the share of the measured peak FLOP/s. The dense side runs timm's own forward.
Activation bytes are what autograd saves for backward, each storage once, parameters left out.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from backbones.build import layout_spec
from backbones.visible import build_layout
from benchmarks.goals import Goal, finish, machine
from benchmarks.saved_bytes import saved_bytes
from data.config import DataConfig
from engine.backbone_config import BackboneConfig
from pretrain.config import MimConfig, PretrainConfig
from pretrain.greenmim import GreenMIM, build_model
from pretrain.masking import unit_mask
from pretrain.model_inputs import mask_tensors

CASES = {  # name: (architecture, window if any, mask ratio)
    "swin_base_w7_r0.75": ("swin_base_patch4_window7_224", 7, 0.75),
    "swin_base_w7_r0.6": ("swin_base_patch4_window7_224", 7, 0.6),
    "swin_base_w7_r0.5": ("swin_base_patch4_window7_224", 7, 0.5),
    "swin_base_w14_r0.75": ("swin_base_patch4_window7_224", 14, 0.75),
    "swin_tiny_w7_r0.75": ("swin_tiny_patch4_window7_224", 7, 0.75),
    "secvit_small_r0.75": ("secvit_small", None, 0.75),
}
GOALS = {  # case: (least speed-up, largest share of the saved bytes)
    "swin_base_w7_r0.75": (3.7, 0.22),
    "swin_base_w7_r0.6": (2.3, None),
    "secvit_small_r0.75": (2.2, None),
}
"""On a CPU."""
MASKS = 8


def main() -> None:
    """Measure the cases and print the figures."""
    options = _options()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cases = {name: CASES[name] for name in options.cases}
    figures: dict[str, Any] = {
        "machine": machine(),
        "device": _device_name(options.device),
        "micro_batch": options.micro_batch,
    }
    figures["cases"] = {name: measure(*case, options=options) for name, case in cases.items()}
    goals = [
        goal
        for name, found in figures["cases"].items()
        if name in GOALS and options.device == "cpu"
        for goal in _goals(name, found)
    ]
    finish(figures, goals, check=not options.no_goal)


def _goals(name: str, found: dict[str, float]) -> list[Goal]:
    speedup, share = GOALS[name]
    goals = [Goal(name=f"{name}: dense over sparse step time", value=found["speedup"], at_least=speedup)]
    if share is not None:
        text = f"{name}: sparse over dense saved activation bytes"
        goals.append(Goal(name=text, value=found["bytes_ratio"], at_most=share))
    return goals


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="timed pairs of steps per case, after one for warm-up")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


def measure(architecture: str, window: int | None, ratio: float, *, options: argparse.Namespace) -> dict[str, float]:
    """Return the medians of one case and their ratios."""
    config = PretrainConfig(
        data=DataConfig(shards=("",), batch_size=options.micro_batch, micro_batch_size=options.micro_batch),
        backbone=BackboneConfig(name=architecture, window=window),
        mim=MimConfig(mask_ratio=ratio),
    )
    device = torch.device(options.device)
    sparse = build_model(config).to(device)
    dense = build_model(replace(config, mim=replace(config.mim, encoder="dense"))).to(device)
    images = torch.randint(256, (options.micro_batch, 3, *config.backbone.img_size), dtype=torch.uint8, device=device)
    batches = [_batch(sparse, ratio=ratio, number=number, device=device) for number in range(MASKS)]
    times: dict[str, list[float]] = {"sparse": [], "dense": [], "encoder_sparse": [], "encoder_dense": []}
    for number in range(options.rounds + 1):
        batch = batches[number % MASKS]
        for name, run in _sides(sparse, dense, images=images, batch=batch, options=options).items():
            seconds = _timed(run, device)
            if number:
                times[name].append(seconds)
    saved = {
        name: _saved_bytes(model, images, batches[0], options.device)
        for name, model in (("sparse", sparse), ("dense", dense))
    }
    found = {f"seconds_{name}": median(values) for name, values in times.items()}
    found |= {f"saved_bytes_{name}": float(value) for name, value in saved.items()}
    found["images_per_s"] = options.micro_batch / found["seconds_sparse"]
    found["speedup"] = found["seconds_dense"] / found["seconds_sparse"]
    found["encoder_speedup"] = found["seconds_encoder_dense"] / found["seconds_encoder_sparse"]
    found["bytes_ratio"] = found["saved_bytes_sparse"] / found["saved_bytes_dense"]
    return found


def _sides(
    sparse: GreenMIM, dense: GreenMIM, *, images: Tensor, batch: dict[str, Any], options: argparse.Namespace
) -> dict[str, Callable[[], None]]:
    def step(model: GreenMIM) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=options.device == "cuda"):
            loss = model(images, **batch)
        loss.backward()

    def encode(model: GreenMIM, features: Any) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=options.device == "cuda"):
            x = features(model.pixels(images))
        x.float().square().mean().backward()

    return {
        "sparse": lambda: step(sparse),
        "dense": lambda: step(dense),
        "encoder_sparse": lambda: encode(sparse, lambda x: sparse.encode(x, batch["layout"])),
        "encoder_dense": lambda: encode(dense, dense.encoder.forward_features),
    }


def _batch(model: GreenMIM, *, ratio: float, number: int, device: torch.device) -> dict[str, Any]:
    spec = layout_spec(model.encoder)
    grid = (spec.img_size[0] // spec.unit[0], spec.img_size[1] // spec.unit[1])
    mask = unit_mask(grid, mask_ratio=ratio, seed=0, step=number, micro_batch=0)
    units = {name: value.to(device) for name, value in mask_tensors(mask, mask.visible_units).items()}
    return {"layout": build_layout(spec, mask.visible).to(device), **units}


def _timed(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _saved_bytes(model: GreenMIM, images: Tensor, batch: dict[str, Any], device: str) -> int:
    with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
        return saved_bytes(model, lambda: model(images, **batch))


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu, one thread, process time"


if __name__ == "__main__":
    main()
