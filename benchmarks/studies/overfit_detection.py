"""The detectors' part of ``benchmarks/studies/overfit.py``: eight COCO images, overfitted.

The rule: the first eight images of ``coco_instances``, those of train2017 by image id and then those of val2017, that
have no crowd and 1 to 4 objects, each of whose masks covers more than 96 x 96 px where the image's short side is 256.
The classes are those that occur in them.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torchvision.ops import roi_align

from benchmarks.goals import Goal
from data.config import DataConfig
from data.images.annotations import read_objects
from data.shards.shard_set import ShardSet, open_shards
from data.sources.trees.coco_files import PREFIX, annotation_files
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from finetune.config import EvaluationConfig, StartConfig
from finetune.detection.config import DetectConfig, DetectorConfig, ResizeConfig
from finetune.detection.ground_truth import Truth, read_truth
from finetune.detection.metrics import average_precision
from finetune.detection.predictions import Detected, as_coco, as_plain, in_image
from finetune.train import train

SOURCE = "coco_instances"
NUM_IMAGES, MOST_OBJECTS, SMALLEST_PX, SHORT_SIDE = 8, 4, 96, 256
MASK_SIDE = 28
STEPS: dict[str, int] = {"retinanet": 400, "mask_rcnn": 400, "cascade": 300, "yolo": 250}
BATCHES: dict[str, int] = {"retinanet": 2, "mask_rcnn": 2, "cascade": 2, "yolo": 4}
BOX_AP50_GOAL, BOX_AP_GOAL, YOLO_AP50_GOAL, MASK_SHARE_GOAL = 0.9, 0.6, 0.8, 0.8
SWIN = StartConfig(
    name="swin_tiny_patch4_window7_224",
    img_size=(256, 256),
    embed_dim=24,
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    drop_path=0.0,
)
XFORMER = StartConfig(name="xformer", embed_dim=16, drop_path=0.0)


def overfit(kind: str, *, data: Path, work: Path) -> tuple[dict[str, Any], list[Goal]]:
    """Train one detector on the eight images; return figures and goals."""
    shards = eight_images(data / SOURCE, out=work / "coco_8")
    config = recipe(kind, shards=shards, folder=work / kind)
    started = process_time()
    scores = train(config)[0]
    minutes = (process_time() - started) / 60
    lines = [json.loads(line) for line in (work / kind / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    figures: dict[str, Any] = {
        "steps": config.optimizer.steps,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "cpu_minutes": minutes,
        "box_AP": scores["box"]["AP"],
        "box_AP50": scores["box"]["AP50"],
        "image_ids": image_ids(shards),
    }
    if kind == "yolo":
        return figures, [Goal(name="yolo: box AP50", value=figures["box_AP50"], at_least=YOLO_AP50_GOAL)]
    goals = [
        Goal(name=f"{kind}: box AP50", value=figures["box_AP50"], at_least=BOX_AP50_GOAL),
        Goal(name=f"{kind}: box AP", value=figures["box_AP"], at_least=BOX_AP_GOAL),
    ]
    if "mask" in scores:
        figures["mask_AP"], figures["oracle_mask_AP"] = scores["mask"]["AP"], oracle_mask_ap(shards)
        share = figures["mask_AP"] / figures["oracle_mask_AP"]
        goals.append(Goal(name=f"{kind}: mask AP over the oracle's", value=share, at_least=MASK_SHARE_GOAL))
    return figures, goals


PARTS: dict[str, Callable[..., tuple[dict[str, Any], list[Goal]]]] = {kind: partial(overfit, kind) for kind in STEPS}


def recipe(kind: str, *, shards: Path, folder: Path) -> DetectConfig:
    """Write a small recipe without augmentation: narrow backbones from random weights, heads 64 wide, 64 regions."""
    yolo, batch = kind == "yolo", BATCHES[kind]
    resize = ResizeConfig(short_sides=(SHORT_SIDE,), long_side=512, test_short_side=SHORT_SIDE, flip=0.0)
    return DetectConfig(
        data=DataConfig(shards=(str(shards),), batch_size=batch, micro_batch_size=batch, workers=0),
        val_shards=str(shards),
        backbone=XFORMER if yolo else SWIN,
        detector=DetectorConfig(
            kind=kind,
            width=96 if yolo else 64,
            box_width=256,
            anchor_samples=128,
            roi_samples=64,
            proposals=(500, 200),
            frozen_norm=False,
        ),
        resize=replace(resize, mode="letterbox", canvas=(320, 320)) if yolo else resize,
        evaluation=EvaluationConfig(every_steps=10**9, micro_batch_size=8),
        optimizer=OptimizerConfig(
            base_lr=1e-3,
            lr_batch_size=batch,
            steps=STEPS[kind],
            warmup_steps=20,
            betas=(0.9, 0.999),
            clip_grad_norm=10.0,
        ),
        run=RunConfig(folder=folder, save_every_steps=100),
        report=ReportConfig(every_steps=10, tensorboard=False),
        distributed=DistributedConfig(engine="single", precision="fp32"),
    )


def eight_images(source: Path, *, out: Path) -> Path:
    """Write the eight images of the rule as shards, once, and return their folder."""
    if (out / "manifest.json").exists():
        return out
    trees = [(path.stem.removeprefix(PREFIX), json.loads(path.read_text())) for path in annotation_files(source)]
    fitting = [match for split, tree in trees for match in _fitting(source / "images" / split, tree)][:NUM_IMAGES]
    assert len(fitting) == NUM_IMAGES, f"{len(fitting)} images fit the rule, {NUM_IMAGES} are wanted"
    names = {category["id"]: category["name"] for category in trees[0][1]["categories"]}
    occurring = sorted({item["category_id"] for _, member in fitting for item in member["objects"]})
    samples: list[NewSample] = []
    for image, member in fitting:
        objects = [{**item, "category": occurring.index(item["category_id"])} for item in member["objects"]]
        content = json.dumps({**member, "objects": objects}).encode()
        samples.append(NewSample(source=str(image), members={"jpg": image.read_bytes(), "json": content}))
    classes = [names[number] for number in occurring]
    write_shards(samples, out=out, classes=classes, limits=ShardLimits(samples=NUM_IMAGES))
    return out


def _fitting(images: Path, tree: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """List the images that fit the rule, each with its annotation."""
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in tree["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [p for p in sorted(tree["images"], key=lambda p: p["id"]) if _fits(p, objects.get(p["id"], []))]
    keys = ("file_name", "height", "width")
    return [
        (images / p["file_name"], {"image_id": p["id"], **{k: p[k] for k in keys}, "objects": objects[p["id"]]})
        for p in chosen
    ]


def image_ids(shards: Path) -> list[int]:
    """The ids of the images."""
    return read_truth(open_shards(shards), option="shards").image_ids


def oracle_mask_ap(folder: Path) -> float:
    """The mask AP of the true masks after they went through the head's 28 x 28 cells and back."""
    shards = open_shards(folder)
    truth: Truth = read_truth(shards, option="shards")
    predictions = [_oracle(shards, position) for position in range(shards.num_samples)]
    lines = list(as_coco(predictions, image_ids=truth.image_ids, category_ids=truth.category_ids))
    return average_precision(truth.dataset, lines, kind="mask")["AP"]


def _oracle(shards: ShardSet, position: int) -> Detected:
    content = shards.read_member(0, position, extension="json")
    assert content is not None
    tree = json.loads(content)
    size = (tree["height"], tree["width"])
    objects = read_objects(content, size=size)
    assert objects.masks is not None
    boxes, masks = torch.from_numpy(objects.boxes), torch.from_numpy(objects.masks).float()
    rows = torch.cat([torch.arange(len(boxes))[:, None].float(), boxes], dim=1)
    cells = roi_align(masks[:, None], rows, (MASK_SIDE, MASK_SIDE), 1.0)
    detections = {
        "boxes": boxes,
        "scores": torch.ones(len(boxes)),
        "labels": torch.from_numpy(objects.categories),
        "masks": cells,
    }
    return as_plain(in_image(detections, content=size, true_size=size), sample=position)


def _fits(image: dict[str, Any], objects: list[dict[str, Any]]) -> bool:
    scale = SHORT_SIDE / min(image["height"], image["width"])
    large = all(item["area"] * scale**2 > SMALLEST_PX**2 for item in objects)
    return 1 <= len(objects) <= MOST_OBJECTS and large and not any(item["iscrowd"] for item in objects)
