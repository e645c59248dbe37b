"""What a trained classifier says about images, as files; unreadable images are named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sources.scenes import scene_members
from finetune.classification import predict as predict_classes
from finetune.commands import predict as predict_command
from finetune.commands.options import PredictOptions
from finetune.commands.predict import LONGEST_NAME_BYTES, find_images, predict
from finetune.segmentation.predict import as_written
from finetune.train import train


@pytest.fixture
def image_folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    for name, number in (("b.jpg", 1), ("a.jpg", 2), ("inner/b.jpg", 3)):
        (folder / name).write_bytes(scene_members(0, number=number, size=64)[1]["jpg"])
    (folder / "a.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image either")
    return folder


def test_a_folder_is_answered_in_the_order_of_names_and_bad_images_are_named(micro, image_folder, tmp_path):
    config = micro(optimizer={"steps": 1, "warmup_steps": 0, "ema_decay": None}, evaluation={"every_steps": 1})
    train(config)
    for run in (config.run.folder, config.run.folder / "checkpoints" / "step-000000001"):
        predict(PredictOptions(run=run, images=image_folder, out=tmp_path / "out"))
        records = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert [record["file"].removeprefix(f"{image_folder}/") for record in records] == [
            "a.jpg",
            "a.png",
            "b.jpg",
            "inner/b.jpg",
        ]
        assert "error" in records[1]
        probabilities = records[0]["probabilities"]
        assert set(probabilities) == {"ant", "bee", "cat", "dog"}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        names = {path.name for path in (tmp_path / "out").iterdir()} - {"predictions.json"}
        assert names == {"a.overlay.png", "b.overlay.png", "inner_b.overlay.png"}
        with Image.open(tmp_path / "out" / "a.overlay.png") as overlay:
            assert overlay.size == (64, 64)
    best = PredictOptions(run=config.run.folder, images=image_folder, out=tmp_path / "best", weights="best-raw")
    predict(best)
    assert json.loads((tmp_path / "best" / "predictions.json").read_text()) == records
    best_weights = config.run.folder / "best" / "raw-step-000000001"
    copied = replace(best, run=shutil.copytree(best_weights, tmp_path / "copied"), weights=None)
    predict(copied)
    assert json.loads((tmp_path / "best" / "predictions.json").read_text()) == records
    with pytest.raises(ValueError, match=r"copied has no raw weights, only best raw"):
        predict(replace(copied, weights="raw"))
    with pytest.raises(ValueError, match="keeps no best ema weights"):
        predict(replace(best, weights="best-ema"))
    with pytest.raises(ValueError, match=r"has no ema weights, only raw; choose with --weights"):
        predict(replace(best, weights="ema"))


def test_names_never_collide(image_folder):
    assert list(find_images(image_folder)) == ["a", "a_png", "b", "inner_b"]
    assert list(find_images(image_folder / "b.jpg")) == ["b"]


def test_names_that_fold_alike_keep_every_image(tmp_path):
    for name in ("a/b_c.jpg", "a_b/c.jpg", "a_b_c.jpg", "a_b_c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images(tmp_path)) == ["a_b_c", "a_b_c_jpg", "a_b_c_jpg1", "a_b_c_png"]


@pytest.mark.parametrize(("num_classes", "written"), [(256, [0, 255]), (300, [0, 299])])
def test_label_maps_of_many_classes_do_not_wrap(tmp_path, num_classes, written):
    labels = as_written(np.array([[0, num_classes - 1]]), num_classes=num_classes)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as read:
        assert np.array(read).tolist() == [written]


def test_images_are_cropped_as_the_run_measured(micro, image_folder, tmp_path, monkeypatch):
    config = micro(optimizer={"steps": 1, "warmup_steps": 0, "ema_decay": None}, evaluation={"crop_ratio": 1.0})
    train(config)
    ratios = []
    crop = predict_classes.resize_center_crop

    def note(data, *, size, crop_ratio):
        ratios.append(crop_ratio)
        return crop(data, size=size, crop_ratio=crop_ratio)

    monkeypatch.setattr(predict_classes, "resize_center_crop", note)
    for run in (config.run.folder, config.run.folder / "backbone"):
        predict(PredictOptions(run=run, images=image_folder / "b.jpg", out=tmp_path / "out"))
    assert ratios == [1.0, 1.0]


def test_no_run_and_no_images_are_one_line(tmp_path):
    options = PredictOptions(run=Path("missing"), images=tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"missing is no folder; give that of a run"):
        predict(options)
    with pytest.raises(ValueError, match=r"no image in .*; expected files ending in .jpg"):
        predict(replace(options, run=tmp_path))


def test_names_that_are_too_long_are_shortened_and_stay_apart(tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    for ending in "ab":
        (deep / f"{'ü' * 100}{ending}.jpg").touch()
    names = list(find_images(tmp_path))
    assert len(set(names)) == 2
    assert all(len(name.encode()) <= LONGEST_NAME_BYTES for name in names)


def test_answers_outlive_the_command_and_go_into_no_folder_of_others(micro, image_folder, tmp_path, monkeypatch):
    config = micro(optimizer={"steps": 1, "warmup_steps": 0, "ema_decay": None})
    train(config)
    options = PredictOptions(run=config.run.folder, images=image_folder, out=image_folder)
    with pytest.raises(ValueError, match=r"holds a.jpg, a.png, b.jpg, ..., which might be lost"):
        predict(options)
    one, left = predict_command._predict_one, [2]

    def interrupted(*args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return one(*args, **kwargs)

    monkeypatch.setattr(predict_command, "_predict_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(replace(options, out=tmp_path / "out"))
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2
    left[0] = 10
    predict(replace(options, out=tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").glob("predictions*")} == {"predictions.json"}
