"""Advice on precision follows what the CPU can do."""

import pytest

from engine.cpu import capabilities, precision_advice

X86 = {"architecture": "x86_64"}


@pytest.mark.parametrize(
    ("precision", "found", "said"),
    [
        ("bf16", {**X86, "avx512_bf16": False}, "--distributed.precision fp32 is faster"),
        ("bf16", {**X86, "avx512_bf16": True}, None),
        ("bf16", {**X86, "amx_bf16": True}, None),
        ("fp32", {**X86, "avx512_bf16": True}, "--distributed.precision bf16 takes about half"),
        ("fp32", X86, None),
        ("fp64", {**X86, "avx512_bf16": True}, None),
        ("bf16", {"architecture": "arm64"}, None),
        ("bf16", {}, None),
    ],
)
def test_the_faster_precision_is_named_where_it_is_known(precision, found, said):
    advice = precision_advice(precision, found)
    assert (advice is None) if said is None else said in advice


def test_this_cpu_is_asked():
    assert isinstance(dict(capabilities()), dict)
