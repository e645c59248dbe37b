"""What do SecViT and its visible tokens cost? ``python benchmarks/steps/secvit.py``.

Ours is compared with a straightforward implementation of the published listing (``plain_secvit.py``), inference and
training step; the step on visible tokens with the dense one, beside the ceiling by multiply-accumulates and the ratio
without any depthwise convolution; a depthwise convolution on visible tokens with scattering to a map, convolving and
gathering. Sides are taken in turn in one process: fp32, one thread, process CPU time, subnormals flushed. Bytes are
what autograd saves for backward, each storage once, parameters left out. Beside it, the share of tokens that are in
another cluster under bf16 autocast.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backbones.build import forward_visible, layout_spec
from backbones.recompute.saved_bytes import saved_bytes
from backbones.sec.clusters import clusters_of, normalised
from backbones.visible.layout import VisibleLayout, build_layout
from backbones.weights.key_names import to_timm
from benchmarks.goals import Goal, finish, machine
from benchmarks.kernels import depthwise_kernels
from benchmarks.steps.plain_secvit import PlainSecViT
from data.sources.scenes import make_scene

MODELS = ("secvit_tiny", "secvit_small")
VISIBLE_MODEL = "secvit_small"
RATIO = 0.75
LISTING_GOAL, VISIBLE_GOAL, BYTES_GOAL = 1.4, 1.8, 0.4
PRECISION_IMAGES = 8


def main() -> None:
    """Measure and print the figures."""
    options = _options()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    figures: dict[str, Any] = {"machine": machine(), "micro_batch": options.micro_batch}
    goals: list[Goal] = []
    for name in options.models:
        figures[name] = listing = against_the_listing(name, options)
        goals += [
            Goal(name=f"{name} {kind}: listing over ours", value=listing[kind], at_least=LISTING_GOAL)
            for kind in ("inference", "training")
        ]
        goals.append(Goal(name=f"{name}: our saved bytes over the listing's", value=listing["bytes"], at_most=1.0))
    figures["visible"] = visible = visible_against_dense(options)
    goals.append(Goal(name="dense over visible step", value=visible["speedup"], at_least=VISIBLE_GOAL))
    goals.append(Goal(name="visible over dense saved bytes", value=visible["bytes"], at_most=BYTES_GOAL))
    figures["convolutions"] = convolutions = {
        case.name: convolution_against_scattering(case, options)
        for case in depthwise_kernels.cases(torch.device("cpu"))
    }
    slowest = min(convolutions.values(), key=lambda figures_of: figures_of["speedup"])["speedup"]
    goals.append(Goal(name="scatter, convolve, gather over ours, at worst", value=slowest, at_least=1.0))
    figures["other_cluster_in_bf16"] = changed_clusters(VISIBLE_MODEL)
    finish(figures, goals, check=not options.no_goal)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one for warm-up")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


def against_the_listing(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Time both implementations with the same weights, and the listing over ours."""
    ours: Any = timm.create_model(name, drop_path_rate=0.0)
    plain = PlainSecViT(ours)
    ours.load_state_dict(to_timm(plain.state_dict(), keep_classifier=True).state)
    images, labels = _images(options), torch.randint(1000, (options.micro_batch,))
    runs: dict[str, Callable[[], object]] = {}
    for side, model in (("ours", ours), ("listing", plain)):
        runs[f"{side}_training"] = partial(_step, model, lambda x, m=model: F.cross_entropy(m(x), labels), images)
        runs[f"{side}_inference"] = partial(_infer, model, images)
    times = _interleaved(runs, rounds=options.rounds)
    figures = {f"seconds_{key}": seconds for key, seconds in times.items()}
    figures |= {
        f"saved_bytes_{side}": saved_bytes(m, partial(m.train(), images))
        for side, m in (("ours", ours), ("listing", plain))
    }
    figures |= {kind: times[f"listing_{kind}"] / times[f"ours_{kind}"] for kind in ("training", "inference")}
    return figures | {"bytes": figures["saved_bytes_ours"] / figures["saved_bytes_listing"]}


def visible_against_dense(options: argparse.Namespace) -> dict[str, float]:
    """Time the encoder's step on all and on visible tokens, and dense over visible."""
    images = _images(options)
    whole: Any = timm.create_model(VISIBLE_MODEL, drop_path_rate=0.0, num_classes=0)
    bare: Any = timm.create_model(
        VISIBLE_MODEL, drop_path_rate=0.0, num_classes=0, version=1, rope=True, cpe=False, lce=False
    )
    layout = _layout(whole)
    runs: dict[str, Callable[[], object]] = {}
    for kind, model in (("", whole), ("_without_depthwise", bare)):
        runs[f"dense{kind}"] = partial(_step, model, lambda x, m=model: m.forward_features(x).square().mean(), images)
        sparse = partial(_visible, model, layout=layout)
        runs[f"visible{kind}"] = partial(_step, model, lambda x, f=sparse: f(x).square().mean(), images)
    times = _interleaved(runs, rounds=options.rounds)
    forwards = {"dense": whole.forward_features, "visible": partial(_visible, whole, layout=layout)}
    macs = {side: _macs(forward, images[:1]) for side, forward in forwards.items()}
    figures = {f"seconds_{key}": seconds for key, seconds in times.items()}
    figures |= {
        f"saved_bytes_{side}": saved_bytes(whole, partial(forward, images)) for side, forward in forwards.items()
    }
    figures["speedup"] = times["dense"] / times["visible"]
    figures["speedup_without_depthwise"] = times["dense_without_depthwise"] / times["visible_without_depthwise"]
    figures["ceiling_by_macs"] = macs["dense"] / macs["visible"]
    return figures | {"bytes": figures["saved_bytes_visible"] / figures["saved_bytes_dense"]}


def convolution_against_scattering(case: depthwise_kernels.Case, options: argparse.Namespace) -> dict[str, float]:
    """Time a depthwise convolution on visible tokens, forward and backward, and scattering over ours."""
    x = case.tokens(images=options.micro_batch, dtype=torch.float32)
    weight = torch.randn_like(x)
    runs: dict[str, Callable[[], object]] = {
        name: lambda way=case.ways[name]: way(x).backward(weight) for name in ("ours", "scattered")
    }
    times = _interleaved(runs, rounds=4 * options.rounds)
    return {f"seconds_{key}": value for key, value in times.items()} | {"speedup": times["scattered"] / times["ours"]}


def changed_clusters(name: str) -> dict[str, float]:
    """The share of (token, head) in another cluster under bf16 than in fp32, by rows of tokens, with first weights."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=0).eval()
    shares: dict[str, list[float]] = {}
    for number in range(PRECISION_IMAGES):
        images = normalised(make_scene(0, number=number, size=224).image, model)
        exact = clusters_of(model, images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = clusters_of(model, images)
        for one, other in zip(exact, rounded, strict=True):
            shares.setdefault(str(one.cluster.shape[1]), []).append(float((one.cluster != other.cluster).mean()))
    return {rows: float(np.mean(values)) for rows, values in shares.items()}


def _images(options: argparse.Namespace) -> Tensor:
    return torch.randn(options.micro_batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def _layout(model: nn.Module) -> VisibleLayout:
    spec = layout_spec(model)
    visible = np.zeros(spec.units, dtype=bool)
    visible.flat[np.random.default_rng(0).permutation(visible.size)[: int(visible.size * (1 - RATIO))]] = True
    return build_layout(spec, visible).to("cpu")


def _visible(model: nn.Module, images: Tensor, *, layout: VisibleLayout) -> Tensor:
    return forward_visible(model, images, layout)


def _step(model: nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    loss(images).backward()


def _infer(model: nn.Module, images: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(images)


def _interleaved(runs: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Time each in turn, after one round for warm-up: median seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = process_time()
            run()
            if number:
                times[name].append(process_time() - start)
    return {name: median(values) for name, values in times.items()}


def _macs(forward: Callable[[Tensor], Tensor], images: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(images)
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
