"""What is worth knowing of the CPU that a run without GPUs computes on."""

from collections.abc import Mapping
from typing import Any

import torch

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def capabilities() -> Mapping[str, Any]:
    """Return what torch knows of this CPU; nothing where it is too old to say."""
    find: Any = getattr(torch.cpu, "get_capabilities", dict)
    return find()


def precision_advice(precision: str, found: Mapping[str, Any]) -> str | None:
    """Return a line on a faster ``distributed.precision`` for a CPU with the capabilities ``found``, None where there is none to give."""
    if found.get("architecture") != "x86_64":
        return None
    native = any(found.get(name) for name in BF16_INSTRUCTIONS)
    if precision == "bf16" and not native:
        return "this CPU has no bf16 instructions and emulates them: a run with --distributed.precision fp32 is faster here"
    if precision == "fp32" and native:
        return (
            "this CPU has bf16 instructions: a run with --distributed.precision bf16 takes about half the time (1.8 "
            "times the steps of a Swin-B)"
        )
    return None
