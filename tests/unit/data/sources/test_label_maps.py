"""Pictures with label maps: pairs by name, maps byte for byte."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.commands.sample_check import describe_values
from data.commands.show import shown_values
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


def without_rows(content):
    place, end = content.index(b"IDAT"), content.index(b"IEND")
    rows = zlib.decompress(content[place + 4 : end - 8])
    body = b"IDAT" + zlib.compress(rows[: len(rows) // 2])
    return (
        content[: place - 4]
        + struct.pack(">I", len(body) - 4)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + content[end - 4 :]
    )


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


def test_folders_that_may_be_classes_are_said(folder, caplog):
    caplog.set_level("INFO")
    root = folder("1.sparrow/x", "2.crow/y")
    assert len(find(root)["train"]) == 2
    assert f"1.sparrow, 2.crow, ... in {root}/images are not read as classes" in caplog.text


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
        (without_rows(label_map()), "the label map does not decode: 50% of its rows are there"),
        (b"hello", "no image"),
    ],
)
def test_maps_that_do_not_fit_are_left_out_with_the_reason(folder, content, reason):
    root = folder("x")
    (root / "annotations" / "x.png").write_bytes(content)
    found = find(root)["train"].prepare(0)
    assert isinstance(found, Rejected)
    assert reason in found.reason


def rename(folder, name):
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(name.format(path.stem)))


def maps_of(source):
    return [Path(str(beside)).name for beside in source.beside]


def test_what_all_maps_have_behind_their_image_s_name_is_found(folder, caplog):
    caplog.set_level("INFO")
    root = folder("a", "ab", "town/c")
    rename(root / "annotations", "{}_mask.png")
    assert maps_of(find(root)["train"]) == ["a_mask.png", "ab_mask.png", "c_mask.png"]
    assert "with _mask behind" in caplog.text
    (root / "annotations" / "ab_mask.png").unlink()
    with pytest.raises(ValueError, match=r"have no label map, .*--map-suffix _mask"):
        find(root)


def test_several_maps_of_each_image_are_asked_about(folder):
    root = folder("x_1_leftImg8bit", "x_2_leftImg8bit")
    rename(root / "annotations", "{}.png")
    for path in sorted((root / "annotations").iterdir()):
        for kind in ("labelIds", "instanceIds", "color"):
            (root / "annotations" / path.name.replace("leftImg8bit", f"gtFine_{kind}")).write_bytes(path.read_bytes())
        path.unlink()
    with pytest.raises(ValueError, match=r"--map-suffix _gtFine_color or _gtFine_instanceIds or _gtFine_labelIds"):
        find(root)
    source = find(root, map_suffix="_gtFine_labelIds")["train"]
    assert maps_of(source) == ["x_1_gtFine_labelIds.png", "x_2_gtFine_labelIds.png"]


@pytest.mark.parametrize("names", [("a_left", "a_right"), ("seq_0", "seq_1")])
def test_images_never_share_a_map(folder, names):
    root = folder(*names)
    first, second = sorted((root / "annotations").iterdir())
    second.unlink()
    first.rename(first.with_name(f"{names[0].partition('_')[0]}_mask.png"))
    with pytest.raises(ValueError, match=rf"{names[0]}.jpg and .*{names[1]}.jpg would both have the label map"):
        find(root)


def test_a_name_behind_one_image_s_map_is_none_behind_all(folder):
    root = folder("seq_0", "seq_1")
    rename(root / "annotations", "{}_mask.png")
    assert maps_of(find(root)["train"]) == ["seq_0_mask.png", "seq_1_mask.png"]


def test_colours_become_classes_where_it_is_said_how(folder, tmp_path):
    root = folder("x")
    (root / "annotations" / "x.png").write_bytes(label_map(mode="RGB"))
    (tmp_path / "classes.txt").write_text("".join(f"{n} {n} {n} class-{n}\n" for n in range(150)))
    source = find(root, map_classes=tmp_path / "classes.txt")["train"]
    assert source.classes[:2] == ("class-0", "class-1")
    values = np.asarray(Image.open(io.BytesIO(source.prepare(0).members["seg.png"])))
    np.testing.assert_array_equal(values, np.asarray(Image.open(io.BytesIO(label_map()))))


def test_verify_counts_the_values(encoded, tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.repeat([[0], [255]], [30, 10], axis=0).repeat(56, axis=1).astype(np.uint8)).save(content, "PNG")
    samples = [NewSample(source="x", members={"jpg": encoded(n), "seg.png": content.getvalue()}) for n in range(2)]
    write_shards(samples, out=tmp_path, classes=None, limits=ShardLimits())
    assert verify(tmp_path).map_values == {0: 2 * 30 * 56, 255: 2 * 10 * 56}
    values = shown_values(open_shards(tmp_path), count=1)
    assert describe_values(values).startswith("label maps hold the values 0 (75.0%), 255 (25.0%)")


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
