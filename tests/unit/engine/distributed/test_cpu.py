"""Advice on precision follows what the CPU can do, and memory that is freed stays with the process."""

import subprocess
import sys

import pytest

from engine.distributed.cpu import capabilities, precision_advice

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


FAULTS = """
import resource, torch
from engine.distributed.cpu import keep_freed_memory

layers = torch.nn.Sequential(*(torch.nn.Linear(1536, 1536) for _ in range(8)))

def step():
    layers.zero_grad(set_to_none=True)
    layers(torch.ones(512, 1536)).sum().backward()

def faults():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), int(keep_freed_memory()), faults())
"""


def test_a_step_gets_no_page_anew_that_the_one_before_has_freed():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    before, kept, after = map(int, done.stdout.split())
    if not kept:
        pytest.skip("the C library is not glibc")
    assert before > 1000
    assert after < before / 5  # the system may take unused pages for itself meanwhile
