"""Tiny labelled shards and commands of tiny runs, for the cases that need some."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.drills.trials.case import ROOT
from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards

CLASSES = ("ant", "bee")
SIZE = ("--backbone.img-size", "64", "64", "--backbone.window", "2", "--backbone.embed-dim", "16")
SHAPE = ("--backbone.depths", "1", "1", "1", "1", "--backbone.num-heads", "1", "2", "4", "8")
SWIN = ("--backbone.name", "swin_tiny_patch4_window7_224", *SIZE, *SHAPE)
BATCH = ("--data.batch-size", "8", "--data.micro-batch-size", "4", "--data.workers", "0")
OF_THE_RECIPE = ("--data.batch-size", "4", "--data.micro-batch-size", "4", "--backbone.img-size", "64", "64")
"""Beside ``tiny_cpu.yaml``."""
SHORT = ("--optimizer.steps", "1", "--optimizer.warmup-steps", "0")


def make_shards(out: Path, *, classes: Sequence[str] | None = CLASSES, count: int = 24) -> str:
    """Write labelled scenes, or unlabelled ones; return the folder's name in the case's folder."""
    samples: list[NewSample] = []
    for number in range(count):
        _, members = scene_members(0, number=number, size=64)
        label = None if classes is None else number % len(classes)
        samples.append(NewSample(source=f"scene {number}", members=members, label=label))
    write_shards(samples, out=out, classes=classes, limits=ShardLimits(samples=count))
    return out.name


def tiny_pretraining(folder: Path) -> list[str]:
    """Write shards, and the options of a pretraining on them that lasts one step."""
    return ["--data.shards", make_shards(folder / "shards"), "--run.folder", "runs/x", *SWIN, *BATCH, *SHORT]


def pretraining(shards: str = "shards", *more: str, steps: int = 1, workers: int = 0) -> list[str]:
    """Name the command of the smallest pretraining."""
    recipe = ROOT / "pretrain" / "recipes" / "tiny_cpu.yaml"
    command = ["pretrain/main.py", "--recipe", str(recipe), "--data.shards", shards, "--run.folder", "run"]
    command += ["--optimizer.steps", str(steps), "--optimizer.warmup-steps", "0", "--data.workers", str(workers)]
    return [*command, *OF_THE_RECIPE, *more]
