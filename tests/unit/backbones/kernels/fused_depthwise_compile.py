"""Compile the kernels of the fused depthwise convolution for GPUs that need not be here; print their targets as JSON.

A program of its own, with Triton's interpreter off: where it is on, kernels are no kernels.
"""

import json
import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backbones.kernels.depthwise import _convolve, _sum_gradients

NUMBERS = {"rows": "i32", "channels": "i32", "windows": "*i64"} | dict.fromkeys(
    ("tokens", "height", "width", "reach"), "i32"
)


def compiled(kernel, capability, types, **constants):
    """Compile a kernel for GPUs of a ``capability`` and read the target that its assembly names."""
    source = ASTSource(fn=kernel, signature={**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
    assert found.asm["cubin"]
    return re.search(r"\.target (sm_\d+)", found.asm["ptx"])[1]


def main():
    """Compile both kernels for both generations, once with every option on and once with all off."""
    targets = {}
    for capability, side, dtype, on in (
        (80, 3, "*bf16", True),
        (80, 7, "*fp16", False),
        (90, 3, "*bf16", False),
        (90, 5, "*fp32", True),
    ):
        kernels = targets.setdefault(capability, {})
        shape = {"side": side, "whole": not on}
        options = {"has_bias": on, "add_x": on, "flip": on, "block_rows": 32, "block_channels": 64}
        types = {"x": dtype, "stride": "i32", "taps": "*fp32", "bias": "*fp32", "out": dtype, **NUMBERS}
        kernels[f"convolve {side}"] = compiled(_convolve, capability, types, **shape, **options)
        num_taps = triton.next_power_of_2(side * side + 1)
        parts = {"num_taps": num_taps, "block_rows": 128 // num_taps, "block_channels": 32}
        types = {"x": dtype, "stride": "i32", "grad": dtype, "sums": "*fp32", **NUMBERS, "part_rows": "i32"}
        kernels[f"gradients {side}"] = compiled(_sum_gradients, capability, types, **shape, **parts)
    sys.stdout.write(json.dumps(targets) + "\n")


if __name__ == "__main__":
    main()
