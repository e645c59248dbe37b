"""Shards made of shards: the same samples, whoever wrote them, and names that are safe to write."""

import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from data.shards.scan import index_shards
from data.shards.shard_set import open_shards
from data.shards.tar_files import find_tars
from data.sources.config import Preparation
from data.sources.formats import find_source
from data.sources.reshard import find_shards, is_plain_key, stored_samples
from data.sources.source import prepared, split_off
from data.writing.journal import Rejected
from data.writing.writer import NewSample, ShardLimits, write_shards
from tests.unit.data.write_options import write_options

IMAGENETTE = Path(__file__).resolve().parents[5] / "shared" / "data" / "imagenette_128_shards"


@pytest.fixture
def foreign(tmp_path):
    """Write a tar of (name, content) pairs and return its folder."""

    def foreign(*members, name="a.tar"):
        folder = tmp_path / "foreign"
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / name, "w") as tar:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return folder

    return foreign


@pytest.fixture
def find(tmp_path):
    def find(folder, **options):
        index = tmp_path / "index"
        index.mkdir()
        return find_shards(write_options(folder, **options), index)["train"]

    return find


def test_members_labels_and_keys_stay(foreign, find, encoded):
    members = [("x/one.jpeg", encoded(1)), ("x/one.cls", b"1"), ("x/one.json", b"{}"), ("x/one.seg.png", b"map")]
    source = find(foreign(*members, ("x/two.jpg", encoded(2)), ("x/two.txt", b"a dog")), names=["a", "b"])
    samples = [source.prepare(number) for number in range(2)]
    assert samples[0].members == {"jpeg": encoded(1), "json": b"{}", "seg.png": b"map"}
    assert samples[1].members == {"jpg": encoded(2), "txt": b"a dog"}
    assert [(sample.key, sample.label) for sample in samples] == [("x/one", 1), ("x/two", None)]
    assert (source.classes, source.labels) == (("a", "b"), (1, -1))


def test_keys_that_are_used_twice_or_leave_the_folder_are_replaced_by_numbers(foreign, find, encoded, tmp_path):
    foreign(("1.jpg", encoded(1)), name="a.tar")
    source = find(foreign(("1.jpg", encoded(2)), name="b.tar"))
    assert [source.prepare(n).key for n in range(2)] == [None, None]
    write_shards(
        prepared(split_off(source, fraction=0.0, seed=0)[0], processes=1),
        out=tmp_path / "o",
        classes=None,
        limits=ShardLimits(),
    )
    assert [open_shards(tmp_path / "o").entries(0)[n].key for n in range(2)] == ["000000", "000001"]


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        *((key, True) for key in ("a", "a/b-c_d 1", "n0.1/x")),
        *((key, False) for key in ("../a", "/a", "a/../b", "a//b", "a\\b", "größe", "x" * 81, "", "a/", "a.b", "a\n")),
    ],
)
def test_only_plain_keys_are_written_again(key, plain):
    assert is_plain_key(key) == plain


def test_what_is_left_behind_is_said_and_pickles_are_not_carried_on(foreign, find, encoded, caplog):
    source = find(foreign(("a.jpg", encoded(1)), ("a.pkl", b"evil"), ("a.npy", b"x")))
    assert list(source.prepare(0).members) == ["jpg"]
    assert "left behind: 1 x .pkl" in caplog.text
    assert "left behind: 1 x .npy" in caplog.text


def test_broken_images_go_into_the_ledger_and_the_rest_is_written(foreign, find, encoded):
    source = find(foreign(("a.jpg", encoded(1)), ("b.jpg", b"\xff\xd8\xff broken")))
    broken = source.prepare(1)
    assert isinstance(broken, Rejected)
    assert broken.source.endswith("a.tar!b")


def test_resizing_is_refused_where_places_in_pixels_would_no_longer_fit(foreign, find, encoded, tmp_path):
    shrunk = find(foreign(("a.jpg", encoded(1)), ("a.json", b'{"caption": "a dog"}')), size=32).prepare(0)
    assert shrunk.members["json"] == b'{"caption": "a dog"}'
    assert shrunk.members["jpg"] != encoded(1)
    for extension, content in (("seg.png", b"x"), ("json", b'{"objects": [{"bbox": [1, 2, 3, 4]}]}')):
        samples = [NewSample(source="x", members={"jpg": encoded(0), extension: content})]
        write_shards(samples, out=tmp_path / extension, classes=None, limits=ShardLimits())
        with pytest.raises(
            ValueError, match=rf"--size cannot be used here: sample 000000 has a \.{extension} with places"
        ):
            stored_samples(open_shards(tmp_path / extension), preparation=Preparation(resize=20))


def with_webdataset(tars, *, decode=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        dataset = webdataset.WebDataset(list(map(str, tars)), shardshuffle=False)
        return list(dataset.decode(decode) if decode else dataset)


def test_webdataset_reads_our_shards_with_annotations_and_maps(encoded, tmp_path):
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.arange(40 * 56, dtype=np.uint8).reshape(40, 56)).save(content, "PNG")
    tree = {"objects": [{"category": 1, "bbox": [1, 2, 3, 4]}]}
    members = {"jpg": encoded(3), "json": json.dumps(tree).encode(), "seg.png": content.getvalue()}
    samples = [NewSample(source="x", members=members, label=7, key="k") for _ in range(2)]
    write_shards(samples[:1], out=tmp_path, classes=tuple("abcdefgh"), limits=ShardLimits())
    (found,) = with_webdataset([tmp_path / "shard-000000.tar"])
    assert {name: value for name, value in found.items() if name[0] != "_"} == {**members, "cls": b"7"}
    (decoded,) = with_webdataset([tmp_path / "shard-000000.tar"], decode="rgb8")
    assert (decoded["cls"], decoded["json"], decoded["jpg"].shape) == (7, tree, (40, 56, 3))
    assert (decoded["seg.png"][..., 0] == np.arange(40 * 56, dtype=np.uint8).reshape(40, 56)).all()


def test_what_webdataset_wrote_is_the_same_after_indexing(encoded, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        with webdataset.ShardWriter(str(tmp_path / "their-%06d.tar"), maxcount=4, verbose=0) as writer:
            for n in range(10):
                sample = {
                    "__key__": f"dir.x/{n:04d}",
                    "jpg": encoded(n),
                    "cls": n % 3,
                    "json": {"n": n},
                    "txt": f"text {n}",
                }
                writer.write({**sample, "seg.png": b"map %d" % n})
    index_shards(find_tars(tmp_path), out=tmp_path)
    shards = open_shards(tmp_path)
    ours = [(shard, position) for shard, size in enumerate(shards.sizes) for position in range(size)]
    theirs = with_webdataset(sorted(tmp_path.glob("*.tar")))
    assert len(ours) == len(theirs) == 10
    for (shard, position), item in zip(ours, theirs, strict=True):
        sample = shards.read(shard, position)
        assert (sample.key, sample.image, sample.label) == (item["__key__"], item["jpg"], int(item["cls"]))
        for extension in ("json", "txt", "seg.png"):
            assert shards.read_member(shard, position, extension=extension) == item[extension]


@pytest.mark.skipif(not IMAGENETTE.is_dir(), reason="not on this machine: ../shared/data/imagenette_128_shards")
def test_real_shards_hold_the_same_samples_after_resharding(find, tmp_path):
    source = find(IMAGENETTE, pattern="val-*.tar", check="header")
    out = tmp_path / "out"
    selection = split_off(source, fraction=0.0, seed=5)[0]
    write_shards(prepared(selection, processes=1), out=out, classes=source.classes, limits=ShardLimits(samples=700))
    before = with_webdataset([IMAGENETTE / "val-000000.tar"])
    after = with_webdataset(sorted(out.glob("*.tar")))
    assert len(after) == 2000
    assert [item["__key__"] for item in after] != [item["__key__"] for item in before]
    as_set = [{(item["__key__"], item["jpg"], item["cls"]) for item in items} for items in (before, after)]
    assert as_set[0] == as_set[1]


def test_tars_of_both_splits_become_both_with_the_classes_of_training(foreign, tmp_path, encoded):
    for split, labels in (("train", ("dog", "cat")), ("validation", ("dog",))):
        members = [
            (f"{n}.{name}", each)
            for n, label in enumerate(labels)
            for name, each in (("jpg", encoded(n)), ("cls", label.encode()))
        ]
        folder = foreign(*members, name=f"x-{split}-0.tar")
    splits = find_shards(write_options(folder), tmp_path / "index")
    assert {split: (source.classes, source.labels) for split, source in splits.items()} == {
        "train": (("cat", "dog"), (1, 0)),
        "val": (("cat", "dog"), (1,)),
    }


def test_what_write_made_of_two_splits_is_read_again(write, tmp_path):
    train, _ = write(8, name="out/train"), write(4, name="out/val")
    splits = find_shards(write_options(tmp_path / "out"), tmp_path / "index")
    assert {split: len(source) for split, source in splits.items()} == {"train": 8, "val": 4}
    assert splits["train"].classes == train.classes
    assert find_source(write_options(tmp_path / "out"))[0] == "webdataset"
    assert find_source(write_options(tmp_path / "shard-{000..003}.tar"))[0] == "webdataset"


def test_shards_of_one_split_and_those_to_test_on_keep_their_manifest(write, tmp_path, encoded):
    train = write(8, name="out/train")
    assert train.classes is not None
    find = lambda: find_shards(write_options(tmp_path / "out"), tmp_path / "index")  # noqa: E731
    assert {split: (len(each), each.classes) for split, each in find().items()} == {"train": (8, train.classes)}
    write(4, name="out/test")
    assert {split: (len(each), each.classes) for split, each in find().items()} == {
        "train": (8, train.classes),
        "val": (4, train.classes),
    }


def test_splits_that_are_left_alone_are_named(write, tmp_path, caplog):
    write(8, name="out/train"), write(4, name="out/val"), write(3, name="out/test")
    (tmp_path / "out" / "train_extra").mkdir()
    (tmp_path / "out" / "train_extra" / "x.tar").touch()
    splits = find_shards(write_options(tmp_path / "out"), tmp_path / "index")
    assert {split: len(source) for split, source in splits.items()} == {"train": 8, "val": 4}
    assert f"the shards of test are left alone: --source {tmp_path / 'out' / 'test'}" in caplog.text
    assert "train_extra, which has no manifest, are left alone" in caplog.text
    write(3, name="out/train_2")
    with pytest.raises(ValueError, match="has shards of train in train and train_2: choose one"):
        find_shards(write_options(tmp_path / "out"), tmp_path / "index")


def test_a_folder_of_many_files_is_not_asked_about_each(tmp_path, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number}.jpg").touch()
    asked = []
    monkeypatch.setattr(Path, "is_dir", lambda path: asked.append(path) or path == tmp_path)
    assert find_source(write_options(tmp_path))[0] == "folder"
    assert len(asked) < 50
