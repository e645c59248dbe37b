"""Attention in clusters at SecViT-S's stages, visible tokens and all: PyTorch's operations and our fused kernels.

Both ways start from ``qkv`` as the linear layer wrote it and end with tokens in their own order: rotary positions, the
similarity and the sort count. The last stage has one cluster and is left out.

Legend: b images, n tokens, h heads, d channels per head, f = d/2 angles.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from backbones.build import layout_spec
from backbones.sec.attention import cluster_attention, num_clusters_for, rotation, turned
from backbones.visible.layout import build_layout
from benchmarks.device_times import forward_backward_ms
from pretrain.batches.masking import unit_mask

NETWORK, RATIOS = "secvit_small", (0.75, 0.0)
STAGES = range(3)
Attend = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The attention of one stage under one mask."""

    name: str
    num_heads: int
    head_dim: int
    num_clusters: int
    turn: Tensor
    """[n, f, 2] cosines and sines."""

    @property
    def ways(self) -> dict[str, Attend]:
        """What can be measured where ``turn`` is."""
        return {"plain": self.plain, "fused": self.fused} if self.turn.is_cuda else {"plain": self.plain}

    def qkv(self, *, images: int, dtype: torch.dtype) -> Tensor:
        """Draw queries, keys and values [b, n, 3, h, d]."""
        shape = (images, len(self.turn), 3, self.num_heads, self.head_dim)
        return torch.randn(shape, dtype=dtype, device=self.turn.device, requires_grad=True)

    def plain(self, qkv: Tensor) -> Tensor:
        """Attend by PyTorch's operations."""
        q, k, v = turned(qkv, self.turn)
        return cluster_attention(q, k, v, num_clusters=self.num_clusters)

    def fused(self, qkv: Tensor) -> Tensor:
        """Attend by our kernels."""
        from backbones.kernels.cluster_attention import fused_cluster_attention  # noqa: PLC0415 - imports Triton, which may be told to interpret by now

        return fused_cluster_attention(qkv, self.turn, num_clusters=self.num_clusters)[0]


def cases(device: torch.device) -> Iterator[Case]:
    """List every stage that has clusters, for visible tokens and for all."""
    model: Any = timm.create_model(NETWORK, num_classes=0)
    spec = layout_spec(model)
    for ratio in RATIOS:
        visible = np.ones(spec.units, dtype=bool)
        if ratio:
            visible = unit_mask(spec.units, mask_ratio=ratio, seed=0, step=0, micro_batch=0).visible
        layout = build_layout(spec, visible).to(device)
        for stage in STAGES:
            grid, attention = layout.stages[stage + 2], model.layers[stage].blocks[0].attn
            head_dim = model.layers[stage].head_dim
            yield Case(
                name=f"stage{stage + 1}_r{ratio}",
                num_heads=attention.num_heads,
                head_dim=head_dim,
                num_clusters=num_clusters_for(grid.num_units, at_224=attention.num_clusters),
                turn=rotation(grid.coords, head_dim, dtype=torch.float32),
            )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time each way in each case, in milliseconds."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    times: dict[str, Any] = {}
    for case in cases(device):
        qkv = case.qkv(images=options.micro_batch, dtype=dtype)
        times[case.name] = {
            name: forward_backward_ms(partial(way, qkv), [qkv], device=device, rounds=options.rounds)
            for name, way in case.ways.items()
        }
    return {"micro_batch": options.micro_batch, "cases": times}


def interpreted_error() -> float:
    """The largest relative error of the kernels' output and gradient: at stage 3, on visible tokens, for its size."""
    case = list(cases(torch.device("cpu")))[STAGES[-1]]
    qkv = case.qkv(images=1, dtype=torch.float32)
    results = [[out, *torch.autograd.grad(out.square().sum(), qkv)] for out in (case.fused(qkv), case.plain(qkv))]
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(*results, strict=True))
