"""Do all detectors and segmentation heads learn on two processes? ``python benchmarks/studies/dense_pairs.py``.

Each trains on the eight real images of ``benchmarks/studies/overfit.py``, launched as users launch it, on two CPU
processes under DeepSpeed: a small backbone from random weights, heads and pyramids at their published widths, ten steps
of four images without augmentation. The loss has to fall: the mean of the last three steps below that of the first
three.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

from benchmarks.goals import Goal, finish, machine
from benchmarks.studies import overfit_detection, overfit_segmentation
from engine.recipe import dump
from finetune.detection.config import DetectorConfig, ResizeConfig
from finetune.segmentation.config import SegmenterConfig

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH_SIZE, SIDE, LIMIT_S = 10, 4, 192, 900
SEGVIT_LR = 3e-4
"""What the wide head stands, from random weights."""
LAUNCH = ("-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "pretrain/cpu_two_processes.yaml")
DETECTORS = tuple(overfit_detection.STEPS)
HEADS = tuple(overfit_segmentation.HEADS)


def main() -> None:
    """Train all and print how the losses fell."""
    options = _options()
    figures: dict[str, Any] = {"machine": machine(), "steps": STEPS}
    goals: list[Goal] = []
    for name in options.parts:
        started = monotonic()
        losses = losses_of(name, data=options.data, work=options.work)
        first, last = mean(losses[:3]), mean(losses[-3:])
        figures[name] = {"first_loss": first, "last_loss": last, "seconds": monotonic() - started}
        goals.append(
            Goal(name=f"{name}: loss of the last three steps over the first three", value=last / first, at_most=0.99)
        )
    finish(figures, goals, check=not options.no_goal)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=DETECTORS + HEADS, default=DETECTORS + HEADS, help="what to train"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with coco_instances and camvid_semseg"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/dense_pairs"), help="folder for shards and runs")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


def losses_of(name: str, *, data: Path, work: Path) -> list[float]:
    """Train one detector or head on two processes: the loss of each step."""
    folder = (work / name).resolve()
    config = (
        _detector(name, data=data, work=work, folder=folder)
        if name in DETECTORS
        else _segmenter(name, data=data, work=work, folder=folder)
    )
    recipe = work / f"{name}.yaml"
    recipe.write_text(dump(config))
    command = [
        sys.executable,
        *LAUNCH,
        "--main_process_port",
        "0",
        "finetune/main.py",
        "--recipe",
        str(recipe.resolve()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    if ended.returncode:
        raise SystemExit(f"{name} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _detector(kind: Any, *, data: Path, work: Path, folder: Path) -> Any:
    shards = overfit_detection.eight_images(data / overfit_detection.SOURCE, out=work / "coco_8").resolve()
    small = overfit_detection.recipe(kind, shards=shards, folder=folder)
    resize = ResizeConfig(short_sides=(SIDE,), long_side=2 * SIDE, test_short_side=SIDE, flip=0.0)
    letterbox = replace(resize, mode="letterbox", canvas=(SIDE, SIDE))
    return replace(
        small,
        detector=DetectorConfig(kind=kind),
        resize=letterbox if kind == "yolo" else resize,
        **_sections(small),
    )


def _segmenter(head: str, *, data: Path, work: Path, folder: Path) -> Any:
    part = overfit_segmentation.HEADS[head]
    shards = overfit_segmentation.write_chosen(data / "camvid_semseg", work / "camvid_8").resolve()
    own: Any = SegmenterConfig(head=part.segmenter.head, dim=384 if head == "segvit" else None)
    if head == "segvit":
        part = replace(part, base_lr=SEGVIT_LR, head_lr_scale=1.0)
    small = overfit_segmentation.part_config(replace(part, segmenter=own), shards=shards, folder=folder)
    crop = (SIDE, 256)
    return replace(
        small,
        backbone=replace(small.backbone, img_size=crop),
        augment=replace(small.augment, crop=crop, short_side=SIDE),
        inference=replace(small.inference, short_side=SIDE),
        **_sections(small),
    )


def _sections(small: Any) -> dict[str, Any]:
    return {
        "data": replace(small.data, batch_size=BATCH_SIZE, micro_batch_size=2),
        "optimizer": replace(small.optimizer, steps=STEPS, warmup_steps=2, lr_batch_size=BATCH_SIZE),
        "report": replace(small.report, every_steps=1),
        "run": replace(small.run, save_every_steps=STEPS),
        "distributed": replace(small.distributed, engine="deepspeed"),
    }


if __name__ == "__main__":
    main()
