"""Window attention of Swin-B's stages on visible tokens: plain operations, SDPA, flex_attention and our fused kernel.

Every way starts from ``qkv`` as the linear layer wrote it and ends with tokens in their own order, so copies into
groups or into the order that flex_attention wants count. Making the plan does not, and nor does flex_attention's block
mask.

Legend: b images, n tokens, h heads, d channels per head, t rows of a bias table.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from backbones.ops.window_attention import window_attention
from backbones.visible.layout import LayoutSpec, VisibleLayout, build_layout
from backbones.visible.window_layout import GroupPlan, StageSpec, window_stages
from benchmarks.device_times import forward_backward_ms
from pretrain.batches.masking import unit_mask

HEAD_DIM, HEADS = 32, (4, 8, 16, 32)
WINDOWS = {224: 7, 384: 12, 512: 16}
MASKS = 24
SCALE = HEAD_DIM**-0.5
Attend = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One stage and shift of one mask, planned for groups and for tiles."""

    name: str
    num_heads: int
    plan: GroupPlan
    tiles: GroupPlan

    @property
    def plans(self) -> tuple[tuple[str, GroupPlan], ...]:
        """The plans by the name of what they are for."""
        return ("groups", self.plan), ("tiles", self.tiles)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time each way in each case, in milliseconds."""
    device = torch.device(options.device)
    figures: dict[str, Any] = {}
    for size in options.sizes:
        for ratio in options.ratios:
            for case in cases(size, ratio=ratio, device=device):
                times = {name: _times(attend, case, options) for name, attend in ways(case, device).items()}
                figures[case.name] = {
                    "tokens": len(case.plan.slot),
                    "groups": [case.plan.num_groups, case.plan.group_size],
                    "scores": {"needed": needed_scores(case.plan), **{name: scores(plan) for name, plan in case.plans}},
                    "ms": times,
                    "fastest": min(times, key=lambda name: times[name]["forward_backward"]),
                }
    return {"micro_batch": options.micro_batch, "cases": figures}


def cases(size: int, *, ratio: float, device: torch.device) -> Iterator[Case]:
    """List all stages and shifts of Swin-B at ``size`` pixels, under one mask."""
    spec = _spec(size, WINDOWS[size])
    layouts = [layout.to(device) for layout in _layouts(spec, ratio=ratio, step=0)]
    for number, (stage, tiled) in enumerate(zip(*(layout.stages for layout in layouts), strict=True)):
        for plan, tiles in zip(stage.plans, tiled.plans, strict=True):
            name = f"{size}px_w{plan.window_size[0]}_r{ratio}_stage{number + 1}_shift{plan.shift[0]}"
            yield Case(name=name, num_heads=HEADS[number], plan=plan, tiles=tiles)


def scores(plan: GroupPlan) -> int:
    """Count the scores that the fused kernel computes for a head and image."""
    first_key, end_key = plan.tiles[:, 2:].T
    return int((-((first_key - end_key) // plan.tile)).sum()) * plan.tile**2


def needed_scores(plan: GroupPlan) -> int:
    """Count the pairs of tokens that share a window."""
    return int(((plan.member >= 0).sum(1) ** 2).sum())


def count_scores() -> dict[str, list[dict[str, float]]]:
    """Count the scores that each stage needs, and how many times as many the kernel computes.

    By size, window and ratio of the network.

    Means over ``MASKS`` masks, of all shifts together.
    """
    return {
        f"{size}px_w{window}_r{ratio}": _count(_spec(size, window), ratio=ratio)
        for size, window in ((224, 7), (224, 14), (384, 12), (512, 16))
        for ratio in (0.75, 0.6)
    }


def _count(spec: LayoutSpec, *, ratio: float) -> list[dict[str, float]]:
    counts = [{"needed": 0.0, "groups": 0.0, "tiles": 0.0} for _ in spec.stages]
    for step in range(MASKS):
        grouped, tiled = _layouts(spec, ratio=ratio, step=step)
        for own, stage, in_tiles in zip(counts, grouped.stages, tiled.stages, strict=True):
            own["needed"] += sum(map(needed_scores, stage.plans)) / MASKS
            own["groups"] += sum(map(scores, stage.plans)) / MASKS
            own["tiles"] += sum(map(scores, in_tiles.plans)) / MASKS
    return [{**own, **{rule: own[rule] / own["needed"] for rule in ("groups", "tiles")}} for own in counts]


def _layouts(spec: LayoutSpec, *, ratio: float, step: int) -> tuple[VisibleLayout, VisibleLayout]:
    """Plan the layouts of one mask, for groups and for tiles."""
    mask = unit_mask(spec.units, mask_ratio=ratio, seed=0, step=step, micro_batch=0)
    return build_layout(spec, mask.visible), build_layout(spec, mask.visible, rule="tiles")


def _spec(size: int, window: int) -> LayoutSpec:
    stages = [_stage(size // 4 // 2**number, window, channels=128 * 2**number) for number in range(4)]
    return LayoutSpec(img_size=(size, size), patch=(4, 4), unit=(32, 32), stages=tuple(stages), build=window_stages)


def _stage(side: int, window: int, *, channels: int) -> StageSpec:
    window = min(window, side)
    shifts = (0,) if side == window else (0, window // 2)
    return StageSpec(
        grid=(side, side), window=(window, window), shifts=tuple((s, s) for s in shifts), channels=channels
    )


def ways(case: Case, device: torch.device) -> dict[str, Attend]:
    """List the ways that can be measured on ``device``."""
    plain: dict[str, Attend] = {
        "reference": partial(window_attention, plan=case.plan, scale=SCALE, implementation="reference"),
        "sdpa": partial(window_attention, plan=case.plan, scale=SCALE, implementation="sdpa"),
    }
    if device.type != "cuda":
        return plain
    fused = {
        "fused": partial(window_attention, plan=case.plan, scale=SCALE, implementation="fused"),
        "fused_in_tiles": partial(window_attention, plan=case.tiles, scale=SCALE, implementation="fused"),
    }
    if any(case.plan.shift):  # flex_attention is compiled anew for each case, which takes longer than all the rest
        return plain | fused
    torch.compiler.reset()  # each case has shapes of its own, and beyond eight the compiler gives up
    return plain | fused | {"flex": flex(case.plan, torch.compile(flex_attention, dynamic=False))}


def flex(plan: GroupPlan, attention: Any) -> Attend:
    """Window attention by ``attention`` (flex_attention): tokens by window, a document mask, a score function."""
    window, order = plan.window[plan.slot].sort(stable=True)
    back, number, middle = order.argsort(), plan.number[plan.slot][order], plan.masked // 2
    size = len(order)

    def same_window(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return window[q] == window[k]

    blocks = create_block_mask(same_window, None, None, size, size, device=order.device.type)

    def attend(qkv: Tensor, table: Tensor) -> Tensor:
        def with_bias(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + table[(number[q] - number[k] + middle).clamp(0, 2 * middle), h]

        q, k, v = (x.transpose(1, 2).index_select(2, order) for x in qkv.unbind(2))
        out = attention(q, k, v, score_mod=with_bias, block_mask=blocks, scale=SCALE)
        return out.index_select(2, back).transpose(1, 2).flatten(2)

    return attend


def inputs(case: Case, *, images: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw ``qkv`` [b, n, 3, h, d] and ``table`` [t, h], the latter in fp32 as models hold it."""
    shape = (images, len(case.plan.slot), 3, case.num_heads, HEAD_DIM)
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(shape, dtype=dtype, device=device, generator=generator)
    table = torch.randn(case.plan.masked, case.num_heads, device=device, generator=generator)
    return qkv.requires_grad_(), table.requires_grad_()


def _times(attend: Attend, case: Case, options: argparse.Namespace) -> dict[str, float]:
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    qkv, table = inputs(case, images=options.micro_batch, dtype=dtype, device=device)
    return forward_backward_ms(partial(attend, qkv, table), (qkv, table), device=device, rounds=options.rounds)


def interpreted_error() -> float:
    """The largest relative error of the fused kernel's output and gradients, on a deep stage, since that is small."""
    case = list(cases(224, ratio=0.75, device=torch.device("cpu")))[-1]
    qkv, table = inputs(case, images=1, dtype=torch.float32, device=torch.device("cpu"))
    output = window_attention(qkv, table, case.tiles, scale=SCALE, implementation="fused")
    expected = window_attention(qkv, table, case.plan, scale=SCALE, implementation="reference")
    results = [[out, *torch.autograd.grad(out.square().sum(), (qkv, table))] for out in (output, expected)]
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(*results, strict=True))
