"""Settings and advice for runs that compute on a CPU."""

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers for what ``mallopt`` sets."""
_LARGEST_KEPT = 32 * 2**20
"""Largest mmap threshold, in bytes, that glibc takes."""


def capabilities() -> Mapping[str, Any]:
    """Ask torch what this CPU can do; older versions of it say nothing."""
    find: Any = getattr(torch.cpu, "get_capabilities", dict)
    return find()


def precision_advice(precision: str, cpu: Mapping[str, Any]) -> str | None:
    """Advise a faster ``distributed.precision`` for a CPU with these capabilities, None where there is none."""
    if cpu.get("architecture") != "x86_64":
        return None
    has_bf16 = any(cpu.get(name) for name in BF16_INSTRUCTIONS)
    if precision == "bf16" and not has_bf16:
        return (
            "this CPU has no bf16 instructions and emulates them: a run with --distributed.precision fp32 is faster "
            "here"
        )
    if precision == "fp32" and has_bf16:
        return (
            "this CPU has bf16 instructions: a run with --distributed.precision bf16 takes about half the time (1.8 "
            "times the steps of a Swin-B)"
        )
    return None


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free, up to 32 MiB each, for the next ones; return whether it can (glibc).

    By default it gives memory back to the system and asks for it again in every step, and the system clears each page:
    3 % of the time of Swin-B's step on visible tokens. The peak stays the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
