"""Where does a step's time go, kernel by kernel? ``python benchmarks/steps/profile_step.py --case swin_base_w7_r0.75``.

Prints a Markdown table of the operations that take the most time by themselves in the step on visible tokens, beside
what they take in the dense one (on a CPU: one thread; on a GPU: time on the device). The profiler itself takes time,
from short operations most.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.steps import step
from engine.distributed.cpu import keep_freed_memory

ROWS = 20
STEPS = 3


def main() -> None:
    """Profile both steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = {**step.CASES, **step.LARGER_CASES}
    parser.add_argument("--case", choices=list(every), default="swin_base_w7_r0.75")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--micro-batches-per-forward", type=int, default=1)
    options = parser.parse_args()
    options.micro_batch = options.micro_batch or step.MICRO_BATCH[options.device]
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    sparse, dense, batches = step.build(every[options.case], options=options)
    runs = step.sides(sparse, dense, batches=batches, first=0, options=options)
    times = {name: own_times(runs[name], options.device) for name in ("sparse", "dense")}
    sys.stdout.write("\n".join(table(times)) + "\n")


def own_times(run: Callable[[], object], device: str) -> dict[str, float]:
    """The milliseconds per step that each operation takes by itself."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    run()
    with profile(activities=activities) as profiled:
        for _ in range(STEPS):
            run()
    events: Any = profiled.key_averages()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    return {event.key: getattr(event, name) / 1000 / STEPS for event in events}


def table(times: dict[str, dict[str, float]]) -> list[str]:
    """The lines of the table, the longest operations of the step on visible tokens first."""
    totals = {name: sum(own.values()) for name, own in times.items()}
    lines = ["| operation | visible, ms | share | dense, ms | share |", "|---|---|---|---|---|"]
    ranked = sorted(times["sparse"], key=lambda key: -times["sparse"][key])[:ROWS]
    for key in ranked:
        figures = [(times[name].get(key, 0.0), totals[name]) for name in ("sparse", "dense")]
        lines.append(f"| `{key}` | " + " | ".join(f"{ms:.1f} | {ms / total:.1%}" for ms, total in figures) + " |")
    rest = [totals[name] - sum(times[name].get(key, 0.0) for key in ranked) for name in ("sparse", "dense")]
    lines.append(f"| all others | {rest[0]:.1f} | | {rest[1]:.1f} | |")
    lines.append(f"| together | {totals['sparse']:.1f} | | {totals['dense']:.1f} | |")
    return lines


if __name__ == "__main__":
    main()
