"""What is installed on a node, and whether all nodes have the same."""

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launch.doctor.findings import Finding, judged

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "deepspeed", "numpy", "safetensors", "submitit")
BUILD_TOOLS = ("g++", "ninja")


def versions() -> dict[str, str]:
    """Look up the versions that must be the same everywhere."""
    numbers = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def check_versions(everywhere: Sequence[Mapping[str, str]]) -> Finding:
    """Compare the versions of all nodes with those of the first."""
    first = everywhere[0]
    missing = [name for name, number in first.items() if number == "not installed"]
    differing = sorted({name for other in everywhere for name in first if other.get(name) != first[name]})
    return judged(
        "versions",
        ", ".join(f"{name} {first[name]}" for name in ("python", "torch", "accelerate", "deepspeed"))
        + (f"; not installed: {', '.join(missing)}" if missing else "")
        + (f"; other nodes differ in {', '.join(differing)}" if differing else ""),
        fail=bool(missing or differing),
        advice="use one environment on a shared file system, or one container image, for all nodes",
    )


def build_tools() -> list[str]:
    """List the missing ones of the tools that DeepSpeed builds its operators with."""
    return [name for name in BUILD_TOOLS if shutil.which(name) is None]


def check_builds(missing: Sequence[Sequence[str]], *, faults: Sequence[str | None]) -> Finding:
    """Judge whether DeepSpeed can build operators, from each node's missing tools and its own test."""
    tools = sorted({name for node in missing for name in node})
    failed = sorted({reason for reason in faults if reason})
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()
    problems = [*([f"not found: {', '.join(tools)}"] if tools else []), *failed]
    return judged(
        "DeepSpeed operators",
        "; ".join(problems) or f"can be built, in {folder}",
        warn=bool(problems),
        advice="install g++ and ninja (or load a compiler module in the cluster's setup), and give "
        "TORCH_EXTENSIONS_DIR a folder that can be written; collectives among CPU processes go over gloo without it",
    )
