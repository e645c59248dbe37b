"""Depthwise convolutions of SecViT-S's stages on visible tokens: ours, tiles, and scattering to a map.

``ours`` is one Triton kernel on GPUs and tiles with our own backward pass elsewhere; ``tiles`` leaves the backward pass
to PyTorch; ``scattered`` convolves whole maps with zeros where nothing is visible.

Legend: b images, n tokens, c channels.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from backbones.build import layout_spec
from backbones.ops.submanifold import convolution, depthwise
from backbones.visible.layout import build_layout
from backbones.visible.token_grid import TokenGrid
from benchmarks.device_times import forward_backward_ms
from pretrain.batches.masking import unit_mask

NETWORK, RATIO = "secvit_small", 0.75
STAGES, SIDES = range(4), (3, 5)
"""3x3 is the MLP's, three times as wide; 5x5 that of the values."""
Convolve = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution on the tokens of one stage."""

    name: str
    conv: nn.Conv2d
    grid: TokenGrid
    map_side: int
    """Rows and columns of the whole map."""

    @property
    def ways(self) -> dict[str, Convolve]:
        """What is compared."""
        return {"ours": self._ours, "tiles": self._tiles, "scattered": self._scattered}

    def tokens(self, *, images: int, dtype: torch.dtype) -> Tensor:
        """Draw tokens [b, n, c]."""
        shape = (images, len(self.grid.coords), self.conv.out_channels)
        return torch.randn(shape, dtype=dtype, device=self.conv.weight.device, requires_grad=True)

    def _ours(self, x: Tensor) -> Tensor:
        return depthwise(self.conv, x, self.grid)

    def _tiles(self, x: Tensor) -> Tensor:
        return self.grid.tokens(convolution(self.conv, x, self.grid), len(x))

    def _scattered(self, x: Tensor) -> Tensor:
        place = self.grid.coords[:, 0] * self.map_side + self.grid.coords[:, 1]
        maps = x.new_zeros(len(x), self.map_side**2, x.shape[-1]).index_copy(1, place, x)
        maps = self.conv(maps.unflatten(1, (self.map_side, self.map_side)).permute(0, 3, 1, 2))
        return maps.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, place)


def cases(device: torch.device) -> Iterator[Case]:
    """List the 3x3 and the 5x5 convolution of every stage, under one mask."""
    model: Any = timm.create_model(NETWORK, num_classes=0)
    spec = layout_spec(model)
    mask = unit_mask(spec.units, mask_ratio=RATIO, seed=0, step=0, micro_batch=0)
    layout = build_layout(spec, mask.visible).to(device)
    for stage in STAGES:
        for side in SIDES:
            channels = model.feature_info[stage]["num_chs"] * (3 if side == 3 else 1)
            conv = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, device=device)
            grid, map_side = layout.stages[stage + 2], model.img_size[0] // model.feature_info[stage]["reduction"]
            yield Case(name=f"stage{stage + 1}_{side}x{side}", conv=conv, grid=grid, map_side=map_side)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time each way in each case, in milliseconds."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    times: dict[str, Any] = {}
    for case in cases(device):
        case.conv.to(dtype)
        x = case.tokens(images=options.micro_batch, dtype=dtype)
        inputs = [x, *case.conv.parameters()]
        times[case.name] = {
            name: forward_backward_ms(partial(way, x), inputs, device=device, rounds=options.rounds)
            for name, way in case.ways.items()
        }
    return {"micro_batch": options.micro_batch, "cases": times}


def interpreted_error() -> float:
    """The largest relative error of the kernel's output and gradients, on the last stage, since that is small."""
    from backbones.kernels.depthwise import fused_depthwise  # noqa: PLC0415 - imports Triton, which is told to interpret by now

    case = list(cases(torch.device("cpu")))[-1]
    x = case.tokens(images=1, dtype=torch.float32)
    output = fused_depthwise(case.conv, x, case.grid, residual=False, dtype=x.dtype)
    inputs = [x, *case.conv.parameters()]
    results = [[out, *torch.autograd.grad(out.square().sum(), inputs)] for out in (output, case.ways["tiles"](x))]
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(*results, strict=True))
