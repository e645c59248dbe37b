"""The fused depthwise convolution equals the plain one, values and gradients, and is compiled for GPUs without one."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones.ops import submanifold
from tests.unit.backbones.visible.test_token_grid import grid_for

ROOT = Path(__file__).parents[4]
BOUNDS = {"torch.float32": 1e-5, "torch.bfloat16": 2**-7, "torch.float16": 2**-10}
"""Relative to the largest value; of the output and the gradient of x, which are rounded. Sums are in fp32 always."""
ROUNDED = ("output", "gradient of x")

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")


def outcome(program, folder, **environment):
    """Run a program that has its own Triton and read its last line, which is JSON."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/unit/backbones/kernels" / program)],
        env={**here, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_kernels_equal_the_plain_convolution_and_repeat_in_every_bit(tmp_path):
    found = outcome("fused_depthwise_cases.py", tmp_path, TRITON_INTERPRET="1")
    assert sum(case["runs"] > 1 for case in found.values()) == 3
    for name, case in found.items():
        assert case["same"], name
        for part, apart in case["apart"].items():
            bound = BOUNDS[case["dtype"] if part in ROUNDED else "torch.float32"]
            assert apart <= bound, (name, part, apart)


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's assembler is for Linux")
def test_kernels_compile_for_sm_80_and_sm_90(tmp_path):
    found = outcome("fused_depthwise_compile.py", tmp_path)
    assert [len(kernels) for kernels in found.values()] == [4, 4]
    assert {target for kernels in found.values() for target in kernels.values()} == {"sm_80", "sm_90"}


def test_without_a_gpu_the_package_does_not_ask_for_triton():
    code = (  # a module that is None cannot be imported
        "import sys; sys.modules['triton'] = None\n"
        "import torch, backbones.ops.submanifold as s\n"
        "from backbones.visible.token_grid import dense_grid\n"
        "grid = dense_grid(3, 3, num_units=1, device=torch.device('cpu'))\n"
        "conv = torch.nn.Conv2d(2, 2, 3, padding=1, groups=2)\n"
        "print(tuple(s.depthwise(conv, torch.ones(1, 9, 2), grid).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 9, 2)", done.stderr


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


def test_what_is_fused_is_what_kernels_are_compiled_for(monkeypatch):
    monkeypatch.setattr("backbones.kernels.availability.has_kernels", lambda device: True)
    x = torch.zeros(1, 4, 2)

    def fused(x, side, dtype):
        return submanifold._is_fused(nn.Conv2d(2, 2, side, padding=side // 2, groups=2), x, dtype)

    assert not fused(x, 3, torch.float32)
    on_gpu = x.as_subclass(OnGpu)
    assert all(fused(on_gpu, side, dtype) for side in (3, 5, 7) for dtype in (torch.float32, torch.bfloat16))
    assert not fused(on_gpu, 9, torch.float32)
    assert not fused(on_gpu.double(), 3, torch.float64)


@needs_triton
@pytest.mark.parametrize(("residual", "expected"), [(False, torch.bfloat16), (True, torch.float32)])
def test_types_under_autocast_are_those_of_the_plain_way(monkeypatch, residual, expected):
    asked = []
    monkeypatch.setattr(submanifold, "_is_fused", lambda conv, x, dtype: True)
    monkeypatch.setattr(
        "backbones.kernels.depthwise.fused_depthwise", lambda conv, x, grid, **how: asked.append(how) or x
    )
    grid, _ = grid_for(tile=2)
    conv = nn.Conv2d(3, 3, 3, padding=1, groups=3)
    x = torch.randn(1, len(grid.coords), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        submanifold.depthwise(conv, x, grid, residual=residual)
        monkeypatch.undo()
        plain = submanifold.depthwise(conv, x, grid, residual=residual)
    assert asked == [{"residual": residual, "dtype": expected}]
    assert plain.dtype == expected
