"""The kernels compile to machine code of the GPUs people have, which needs no GPU."""

import importlib

import pytest

pytest.importorskip("triton", reason="no Triton on this system")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

WARP = 32
FLOATS = ("qkv", "out", "grad", "dqkv")
EXACT = ("table", "lse", "pairs", "dtable")
INDICES = ("token", "window", "number", "first_key", "member", "tiles")
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
KERNELS = ("forward", "backward_of_lone_tiles", "backward_of_queries", "backward_of_keys", "backward_of_pairs")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def compiled(name, *, capability, dtype, warps, stages, **constants):
    kernel = getattr(importlib.import_module("backbones.kernels.window_attention_triton"), name)
    known = dict.fromkeys(FLOATS, f"*{dtype}") | dict.fromkeys(EXACT, "*fp32") | dict.fromkeys(INDICES, "*i64")
    known |= dict.fromkeys(constants, "constexpr") | {"scale": "fp32"}
    signature = {argument: known.get(argument, "i32") for argument in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return compile_kernel(source, target=GPUTarget("cuda", capability, WARP), options=options)


def check(kernel, capability):
    assert len(kernel.asm["cubin"]) > 1000
    assert kernel.metadata.shared <= SHARED_BYTES[capability]


def constants(name, *, block, dim, block_d, precision):
    found = {"DIM": dim, "BLOCK": block, "BLOCK_D": block_d, "PRECISION": precision}
    return found | ({"WITH_TABLE": True} if name == "backward_of_lone_tiles" else {})


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["forward", "backward_of_lone_tiles"])
def test_small_tiles_compile(name, capability):
    sizes = constants(name, block=16, dim=24, block_d=32, precision="ieee")
    check(compiled(name, capability=capability, dtype="bf16", warps=1, stages=2, **sizes), capability)


def test_the_tables_gradient_compiles():
    kernel = compiled("table_gradient", capability=90, dtype="fp32", warps=4, stages=3, BLOCK_T=32, BLOCK=32, CHUNK=512)
    check(kernel, 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "dim"), [("bf16", 64), ("fp32", 64)])
@pytest.mark.parametrize("name", KERNELS)
def test_large_tiles_compile_and_fit_shared_memory(name, dtype, dim, capability):
    exact = dtype == "fp32"
    sizes = constants(name, block=64, dim=dim, block_d=dim, precision="ieee")
    kernel = compiled(
        name, capability=capability, dtype=dtype, warps=8 if exact else 4, stages=1 if exact else 2, **sizes
    )
    check(kernel, capability)
