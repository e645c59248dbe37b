"""Do our own GPU kernels pay? ``python benchmarks/kernels/compare.py --device cuda``.

Each family of kernels is measured against the ways PyTorch has to compute the same, forward alone and with backward:
CUDA events, median after a warm-up. On a CPU PyTorch's ways alone are timed (process CPU time); ``--interpret``
compares the values of our kernels with them on a tiny case in Triton's interpreter instead.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.goals import Goal, finish, machine
from benchmarks.kernels import attention_kernels, cluster_kernels, depthwise_kernels

FAMILIES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "depthwise": depthwise_kernels.measure,
    "cluster_attention": cluster_kernels.measure,
    "window_attention": attention_kernels.measure,
}
"""What is measured, by the name of the family."""

EQUALITIES: dict[str, Callable[[], float]] = {
    "window_attention": attention_kernels.interpreted_error,
    "depthwise": depthwise_kernels.interpreted_error,
    "cluster_attention": cluster_kernels.interpreted_error,
}
"""Relative error of a family's kernels in Triton's interpreter."""


def main() -> None:
    """Measure the families and print the figures."""
    options = _options()
    if options.interpret and os.environ.get("TRITON_INTERPRET") != "1":  # read when Triton is imported: start again
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "TRITON_INTERPRET": "1"})
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    figures: dict[str, Any] = {"machine": machine(), "device": options.device}
    goals: list[Goal] = []
    if options.device == "cuda":
        figures["gpu"] = torch.cuda.get_device_name()
    if options.count:
        finish({**figures, "scores": attention_kernels.count_scores()}, [], check=False)
        return
    for name in options.families:
        if options.interpret:
            error = EQUALITIES[name]()
            goals.append(Goal(name=f"{name}: relative error in the interpreter", value=error, at_most=1e-5))
        else:
            figures[name] = FAMILIES[name](options)
            finish(figures, [], check=False)  # a later family may take longer than there is time
    finish(figures, goals, check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--micro-batch", type=int, default=64, help="images")
    parser.add_argument("--sizes", nargs="+", type=int, choices=[224, 384, 512], default=[224, 384, 512], help="pixels")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 0.6, 0.75], help="share of masked units")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls, after some for warm-up")
    parser.add_argument(
        "--count", action="store_true", help="count the scores of window attention instead, on any machine"
    )
    parser.add_argument("--interpret", action="store_true", help="compare values in Triton's interpreter, on the CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
