"""Run the fused depthwise convolution beside the plain one and print, per case, how far apart they are, as JSON.

A program of its own, started with TRITON_INTERPRET=1: Triton asks for its interpreter when a kernel is defined, and in
a process of many tests somebody else may have imported it before.
"""

import json
import sys

import torch
from torch import nn

from backbones.kernels.depthwise import fused_depthwise
from backbones.ops.submanifold import depthwise
from backbones.visible.token_grid import dense_grid
from tests.unit.backbones.visible.test_token_grid import grid_for

GRIDS = {
    "some units": lambda: grid_for(units=(2, 3), tile=4, reach=2, seed=1)[0],
    "units of one token": lambda: grid_for(units=(5, 4), tile=1, reach=3, seed=2)[0],
    "one unit": lambda: grid_for(units=(2, 3), tile=4, reach=2, seed=1, ratio=0.0)[0],
    "all units": lambda: grid_for(units=(3, 2), tile=2, reach=2, ratio=1.1)[0],
    "a whole map": lambda: dense_grid(9, 8, num_units=1, device=torch.device("cpu")),
}
CASES = {
    "some units 3": {"runs": 2, "grid": "some units", "side": 3, "channels": 24},
    "some units 5": {"grid": "some units", "side": 5, "channels": 8},
    "some units 5 of 70 channels": {"grid": "some units", "side": 5, "channels": 70, "residual": False},
    "some units 3 without a bias": {"grid": "some units", "side": 3, "channels": 8, "bias": False, "residual": False},
    "units of one token 3": {"runs": 2, "grid": "units of one token", "side": 3, "channels": 70, "bias": False},
    "units of one token 7": {"grid": "units of one token", "side": 7, "channels": 8, "residual": False},
    "one unit 3": {"grid": "one unit", "side": 3, "channels": 24, "residual": False},
    "one unit 5": {"grid": "one unit", "side": 5, "channels": 8},
    "all units 3": {"grid": "all units", "side": 3, "channels": 8},
    "all units 5": {"grid": "all units", "side": 5, "channels": 24, "bias": False},
    "a whole map 3": {"runs": 2, "grid": "a whole map", "side": 3, "channels": 8},
    "a whole map 5": {"grid": "a whole map", "side": 5, "channels": 24, "residual": False},
    "a part of wider rows 3": {"grid": "some units", "side": 3, "channels": 24, "wider": 3},
    "a part of wider rows 5": {"grid": "a whole map", "side": 5, "channels": 8, "residual": False, "wider": 3},
    "bf16": {"grid": "some units", "side": 3, "channels": 24, "dtype": torch.bfloat16},
    "fp16": {"grid": "some units", "side": 5, "channels": 8, "dtype": torch.float16, "residual": False},
}
PARTS = ("output", "gradient of x", "gradient of the weight", "gradient of the bias")


def distances(*, grid, side, channels, residual=True, bias=True, dtype=torch.float32, runs=1, wider=1):
    """Compare the fused convolution with the plain one in float64, and its runs with each other.

    Gives the largest relative difference of each part, and whether all runs agree in every bit.
    """
    torch.manual_seed(0)
    grid = GRIDS[grid]()
    conv = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, bias=bias)
    x, weight = torch.randn(2, 2, len(grid.coords), wider * channels).to(dtype)[..., -channels:]
    once, *again = (
        _parts(lambda x: fused_depthwise(conv, x, grid, residual=residual, dtype=dtype), conv, x, weight)
        for _ in range(runs)
    )
    same = all(torch.equal(one, other) for more in again for one, other in zip(once, more, strict=True))
    conv = conv.double()
    expected = _parts(lambda x: depthwise(conv, x, grid, residual=residual), conv, x.double(), weight.double())
    apart = [
        float((got.double() - wanted).abs().max() / wanted.abs().max())
        for got, wanted in zip(once, expected, strict=True)
    ]
    return {"dtype": str(dtype), "runs": runs, "same": same, "apart": dict(zip(PARTS, apart, strict=False))}


def _parts(run, conv, x, weight):
    x = x.detach().requires_grad_()
    out = run(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *conv.parameters()], weight)]


def main():
    """Run all cases."""
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps({name: distances(**case) for name, case in CASES.items()}) + "\n")


if __name__ == "__main__":
    main()
