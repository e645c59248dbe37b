"""Pictures with label maps: pairs by name, maps byte for byte."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.commands.verify import verify
from data.shards.shard_set import open_shards
from data.sources.label_maps import find_label_maps, has_label_maps
from data.sources.source import prepared, split_off
from data.writing.journal import Rejected
from data.writing.writer import NewSample, ShardLimits, write_shards
from tests.unit.data.write_options import write_options

CAMVID = Path(__file__).resolve().parents[5] / "shared" / "data" / "camvid_semseg"


def label_map(*, height=40, width=56, mode="L", format="PNG"):  # noqa: A002
    content = io.BytesIO()
    values = np.arange(height * width).reshape(height, width) % 150
    Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8)).convert(mode).save(content, format)
    return content.getvalue()


@pytest.fixture
def folder(tmp_path, encoded):
    def folder(*names, maps="annotations", root="set"):
        for number, name in enumerate(names):
            for part, suffix, content in (("images", ".jpg", encoded(number)), (maps, ".png", label_map())):
                path = tmp_path / root / part / f"{name}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return tmp_path / root

    return folder


def find(folder, **options):
    return find_label_maps(write_options(folder, **options), folder)


def test_ade20k_is_read_by_split_and_maps_keep_their_bytes(folder, encoded):
    found = find(folder("training/ADE_1", "training/ADE_2", "validation/ADE_3"), names=("wall", "sky"))
    assert {name: len(source) for name, source in found.items()} == {"train": 2, "val": 1}
    assert found["train"].prepare(1).members == {"jpg": encoded(1), "seg.png": label_map()}
    assert found["val"].classes == ("wall", "sky")


@pytest.mark.parametrize("maps", ["labels", "masks", "annotations"])
def test_a_folder_without_splits_and_with_subfolders(folder, maps):
    source = find(folder("x", "y", "town/z", maps=maps))["train"]
    assert [Path(path).name for path in map(str, source.beside)] == ["x.png", "y.png", "z.png"]
    assert has_label_maps(folder("x", maps=maps))


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_maps_of_one_channel_are_taken(folder, mode):
    root = folder("x")
    content = label_map(mode=mode)
    (root / "annotations" / "x.png").write_bytes(content)
    assert find(root)["train"].prepare(0).members["seg.png"] == content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (label_map(height=20), "the label map is 20x56 pixels, the upright image 40x56"),
        (label_map(mode="RGB"), "the label map is a PNG of mode RGB, expected one channel"),
        (label_map(format="BMP"), "the label map is a BMP, expected a PNG"),
        (label_map()[:-60], "the label map does not decode"),
        (b"hello", "no image"),
    ],
)
def test_maps_that_do_not_fit_are_left_out_with_the_reason(folder, content, reason):
    root = folder("x")
    (root / "annotations" / "x.png").write_bytes(content)
    found = find(root)["train"].prepare(0)
    assert isinstance(found, Rejected)
    assert reason in found.reason


def test_missing_maps_and_folders_are_named(folder, tmp_path):
    root = folder("training/x", "training/y")
    (root / "annotations" / "training" / "y.png").unlink()
    with pytest.raises(ValueError, match=r"1 of the 2 images in .*training have no label map, for example .*y\.png"):
        find(root)
    with pytest.raises(ValueError, match=r"expected images/ and one of annotations, labels, masks"):
        find(tmp_path)
    with pytest.raises(ValueError, match="--size cannot be used with label maps"):
        find(root, size=64)


def test_verify_finds_broken_maps_and_annotations(encoded, tmp_path):
    members = [
        {"jpg": encoded(0), "seg.png": label_map(), "json": b"{}"},
        {"jpg": encoded(1), "seg.png": label_map(height=9)},
        {"jpg": encoded(2), "json": b"{"},
        {"jpg": encoded(3), "json": b"[" * 100_000},
    ]
    samples = [NewSample(source="x", members=files) for files in members]
    write_shards(samples, out=tmp_path, classes=None, limits=ShardLimits())
    problems = verify(tmp_path).problems
    assert len(problems) == 3
    assert "sample 000001" in problems[0]
    assert "the label map is 9x56 pixels" in problems[0]
    assert "its .json: expected JSON, but Expecting" in problems[1]
    assert "sample 000003" in problems[2]


@pytest.mark.skipif(not CAMVID.is_dir(), reason="not on this machine: ../shared/data/camvid_semseg")
def test_real_label_maps_arrive_byte_for_byte(tmp_path):
    source = find(CAMVID)["val"]
    manifest = write_shards(
        prepared(split_off(source, fraction=0.0, seed=0)[0], processes=1),
        out=tmp_path,
        classes=None,
        limits=ShardLimits(),
    )
    assert manifest.num_samples == 50
    shards = open_shards(tmp_path)
    maps = {path.read_bytes() for path in (CAMVID / "labels" / "val").iterdir()}
    assert {shards.read_member(0, position, extension="seg.png") for position in range(50)} == maps
