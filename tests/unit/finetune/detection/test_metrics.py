"""COCO's figures, equal to pycocotools on the same predictions: crowds, gaps in ids, empty images, all sizes."""

import contextlib
import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from finetune.detection.metrics import FIGURES, IOU_TYPES, RECALLS, average_precision, results_table
from finetune.detection.predictions import as_rle

REAL = Path(__file__).resolve().parents[5] / "shared" / "data" / "coco_instances" / "annotations"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="not on this machine: ../shared/data/coco_instances")
SIDES = (8, 20, 60, 110)
CATEGORIES = (1, 7, 90)


def made(*, seed=0, num_images=12, side=128):
    """Random objects (some are crowds), and predictions that miss, hit and double them."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in CATEGORIES]}
    predictions = []
    for number in range(num_images):
        truth["images"].append({"id": 10 + 3 * number, "height": side, "width": side, "file_name": f"{number}.jpg"})
        for _ in range(number % 5):
            size = int(rng.choice(SIDES))
            x, y = rng.integers(0, side - size, 2).tolist()
            category, crowd = int(rng.choice(CATEGORIES[:2])), int(rng.random() < 0.15)
            mask = np.zeros((side, side), bool)
            mask[y : y + size, x : x + size - size // 4] = True
            shared = {"image_id": 10 + 3 * number, "category_id": category}
            truth["annotations"].append(
                {
                    **shared,
                    "id": len(truth["annotations"]) + 1,
                    "bbox": [x, y, size, size],
                    "area": float(mask.sum()),
                    "iscrowd": crowd,
                    "segmentation": as_rle(mask) if crowd else [[x, y, x + size, y, x + size, y + size, x, y + size]],
                }
            )
            for shift in (0, int(rng.integers(0, 12)), 40)[: int(rng.integers(0, 4))]:
                box = [float(min(x + shift, side - 2)), float(y), float(size), float(size)]
                other = {"category_id": int(rng.choice(CATEGORIES))} if rng.random() < 0.2 else {}
                moved = as_rle(np.roll(mask, shift, axis=1))
                predictions.append(
                    {**shared, **other, "bbox": box, "segmentation": moved, "score": float(rng.random())}
                )
    return truth, predictions


def reference(truth, predictions, kind):
    dropped = "segmentation" if kind == "box" else "bbox"
    lines = [{name: value for name, value in line.items() if name != dropped} for line in copy.deepcopy(predictions)]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = copy.deepcopy({"info": {}, **truth})
        dataset.createIndex()
        found = COCOeval(dataset, dataset.loadRes(lines), IOU_TYPES[kind])
        found.evaluate()
        found.accumulate()
        found.summarize()
    return found.stats


def check(truth, predictions, kind):
    ours, theirs = average_precision(truth, predictions, kind=kind), reference(truth, predictions, kind)
    for name, value in zip((*FIGURES, *RECALLS), theirs, strict=True):
        assert ours[name] == (None if value == -1 else pytest.approx(value, abs=1e-9)), name
    return ours


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_figures_equal_pycocotools(kind, seed):
    ours = check(*made(seed=seed), kind)
    assert 0 < ours["AP"] < 1
    known = [value for value in ours["per_class"].values() if value is not None]
    assert set(ours["per_class"]) == {"c1", "c7", "c90"}
    assert np.mean(known) == pytest.approx(ours["AP"])


@needs_real
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_figures_equal_pycocotools_on_real_annotations(kind):
    truth = json.loads((REAL / "instances_val2017.json").read_text())
    rng, predictions = np.random.default_rng(0), []
    for item in truth["annotations"]:
        x, y, width, height = item["bbox"]
        dx, dy = rng.normal(0, 0.05, 2) * (width, height)
        if isinstance(item["segmentation"], dict):
            continue
        moved = [
            (np.array(polygon).reshape(-1, 2) + np.array([dx, dy])).clip(0).flatten().tolist()
            for polygon in item["segmentation"]
        ]
        shared = {"image_id": item["image_id"], "category_id": item["category_id"], "score": float(rng.random())}
        size = next((p["height"], p["width"]) for p in truth["images"] if p["id"] == item["image_id"])
        coded = rle.merge(rle.frPyObjects(moved, *size))
        coded = {"size": coded["size"], "counts": coded["counts"].decode()}
        predictions.append({**shared, "bbox": [x + dx, y + dy, width, height], "segmentation": coded})
    assert check(truth, predictions, kind)["AP"] > 0.5


def test_nothing_found_is_zero_and_nothing_to_find_is_none():
    truth, _ = made()
    assert average_precision(truth, [], kind="box")["AP"] == 0
    empty = {**truth, "annotations": []}
    assert average_precision(empty, [], kind="box")["AP"] is None


def test_boxes_and_masks_have_a_row_each_of_the_table_and_80_characters_are_enough():
    figures = dict.fromkeys(("AP", "AP50", "AP75", "AP_small", "AP_medium"), 1.0) | {"AP_large": None}
    results = [{"name": "best ema", "step": 123456, "box": figures, "mask": figures, "num_images": 5000}]
    shown = io.StringIO()
    Console(file=shown, width=80).print(results_table(results, title="runs/x"))
    assert "…" not in shown.getvalue()
    assert shown.getvalue().count("best ema") == 2
    assert shown.getvalue().count("100.0") == 10
