"""The kernels of attention in clusters compile to machine code of the GPUs people have, which needs no GPU."""

import importlib

import pytest

pytest.importorskip("triton", reason="no Triton on this system")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

WARP = 32
FLOATS = ("qkv", "out", "grad", "beside", "dqkv")
EXACT = ("turn", "lse", "sums", "likeness")
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
KERNELS = ("forward", "backward_of_small_clusters", "backward_of_queries", "backward_of_keys")
STATISTICS = {"sum_parts": {"CHUNK": 256}, "likeness_to_mean": {"PARTS": 16}}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def check(name, capability, *, dtype, dim, block, block_d, warps, stages, turn=True, **constants):
    kernel = getattr(importlib.import_module("backbones.kernels.cluster_attention_triton"), name)
    constants |= {"WITH_TURN": turn, "DIM": dim, "BLOCK": block, "BLOCK_D": block_d}
    if name in KERNELS:
        constants["PRECISION"] = "ieee"
    if name in ("backward_of_small_clusters", "backward_of_keys"):
        constants["WITH_BESIDE"] = turn
    known = dict.fromkeys(FLOATS, f"*{dtype}") | dict.fromkeys(EXACT, "*fp32") | {"order": "*i64", "scale": "fp32"}
    known |= dict.fromkeys(constants, "constexpr")
    signature = {argument: known.get(argument, "i32") for argument in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    compiled = compile_kernel(source, target=GPUTarget("cuda", capability, WARP), options=options)
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared <= SHARED_BYTES[capability]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["forward", "backward_of_small_clusters"])
def test_small_tiles_compile(name, capability):
    check(name, capability, dtype="bf16", dim=24, block=16, block_d=32, warps=1, stages=2, turn=capability == 80)


@pytest.mark.parametrize("name", STATISTICS)
def test_similarity_compiles(name):
    check(name, 90, dtype="bf16", dim=32, block=64, block_d=32, warps=4, stages=3, **STATISTICS[name])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "dim"), [("bf16", 64), ("fp32", 64)])
@pytest.mark.parametrize("name", KERNELS)
def test_large_tiles_compile_and_fit_shared_memory(name, dtype, dim, capability):
    exact = dtype == "fp32"
    warps, stages = (8, 1) if exact else (4, 2)
    check(name, capability, dtype=dtype, dim=dim, block=64, block_d=dim, warps=warps, stages=stages)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["forward", "backward_of_small_clusters"])
def test_tiles_of_whole_clusters_compile_and_fit_shared_memory(name, capability):
    check(name, capability, dtype="fp16", dim=32, block=128, block_d=32, warps=8, stages=2)
