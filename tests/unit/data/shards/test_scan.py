"""Indexing tars that anyone may have written: the same samples as WebDataset finds, and no harm from hostile ones."""

import gzip
import io
import os
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shards.scan import Reading, index_shards, scan_tar
from data.shards.shard_set import open_shards
from data.shards.tar_files import find_tars

REAL_SHARDS = Path(__file__).resolve().parents[5] / "shared" / "data" / "imagenette_128_shards"


def add(tar, name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def make_tar(path, members, *, format=tarfile.GNU_FORMAT):  # noqa: A002
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            add(tar, name, content)
    return path


def test_shards_written_by_webdataset_read_the_same(encoded, tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        with webdataset.ShardWriter(str(source / "train-%04d.tar"), maxcount=4, verbose=0) as writer:
            for n in range(10):
                writer.write({"__key__": f"part/{n:04d}", "jpg": encoded(n), "cls": n % 3, "json": {"n": n}})
    manifest, ignored = index_shards(find_tars(source, pattern="train-*.tar"), out=tmp_path / "ours")
    shards = open_shards(tmp_path / "ours")
    assert manifest.classes == ("0", "1", "2")
    assert not ignored
    assert shards.sizes == (4, 4, 2)
    found = [shards.read(shard, position) for shard, size in enumerate(shards.sizes) for position in range(size)]
    assert [(s.id, s.key, s.image, s.label) for s in found] == [
        (n, f"part/{n:04d}", encoded(n), n % 3) for n in range(10)
    ]
    assert sorted(path.name for path in source.iterdir()) == [f"train-000{n}.tar" for n in range(3)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_tar_format(tmp_path, format):  # noqa: A002
    deep = "d" * 90 + "/" + "n" * 80
    path = make_tar(
        tmp_path / "a.tar", [(f"{deep}.jpg", b"one"), (f"{deep}.cls", b"7"), ("b.jpg", b"two")], format=format
    )
    entries = scan_tar(path).entries
    assert [(entry.key, entry.label, entry.image.size) for entry in entries] == [(deep, 7, 3), ("b", None, 3)]


def test_names_that_are_not_ascii_are_read(tmp_path):
    for format_ in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = make_tar(tmp_path / f"{format_}.tar", [("größe/東京.jpg", b"x")], format=format_)
        assert scan_tar(path).entries[0].key == "größe/東京"


def test_only_listed_extensions_are_kept_and_the_rest_is_counted(tmp_path):
    members = [
        ("a.jpg", b"x"),
        ("a.pkl", b"evil"),
        ("a.seg.png", b"m"),
        ("b.txt", b"no image"),
        ("c.PNG", b"y"),
        ("d", b""),
    ]
    scan = scan_tar(make_tar(tmp_path / "a.tar", members))
    assert [(entry.key, entry.image.extension) for entry in scan.entries] == [("a", "jpg"), ("c", "png")]
    assert [member.extension for member in scan.entries[0].members] == ["seg.png"]
    assert scan.ignored == {".pkl": 1, "samples without an image": 1, "names without an extension": 1}


def test_links_devices_and_climbing_names_do_nothing(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "b.jpg", type=tarfile.LNKTYPE, linkname="../../x")
        add(tar, "c.jpg", type=tarfile.CHRTYPE)
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "../../e\n\x1bvil.jpg", b"x")
    scan = scan_tar(path)
    assert [entry.key for entry in scan.entries] == ["../../e??vil"]
    assert scan.ignored == {"links and special files": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize(
    "label", [b"", b"9" * 100, b"9" * 300, b"1.5", b"nan", b"-2", b"a\nb", b"\xff", b"\x80\x04K\x03."]
)
def test_labels_that_are_no_number_are_counted(tmp_path, label):
    scan = scan_tar(make_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.cls", label)]))
    assert scan.entries[0].label is None
    assert scan.ignored == {"labels that are no class number": 1}


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"cls": b"1"}, 1),
        ({"cls": b" 007\n\0"}, 7),
        ({"cls": b"2.0"}, 2),
        ({"cls": b"\xef\xbb\xbf3\r\n"}, 3),
        ({"cls": b"dog"}, 5),
        ({"cls": "größe x".encode()}, 6),
        ({"json": b'{"label": 4, "width": 3}'}, 4),
        ({"json": b'{"caption": "x", "class_name": "dog"}'}, 5),
        ({"json": b'{"label": 1.0}'}, 1),
        ({"cls": b"1", "json": b'{"label": 4}'}, 1),
        ({"json": b'{"label": true}'}, None),
        ({"json": b'{"label": [1, 0]}'}, None),
        ({"json": b'{"objects": [{"class": 1}]}'}, None),
        ({"json": b"["}, None),
    ],
)
def test_labels_are_numbers_or_names_in_cls_or_json(tmp_path, members, label):
    named = [(f"a.{extension}", content) for extension, content in members.items()]
    reading = Reading(numbers={"dog": 5, "größe x": 6})
    scan = scan_tar(make_tar(tmp_path / "a.tar", [("a.jpg", b"x"), *named]), reading=reading)
    assert (scan.entries[0].label, scan.ignored) == (label, {})


def index_labels(folder, *labels, classes=None, first_class=None):
    folder.mkdir(exist_ok=True)
    for number, label in enumerate(labels):
        make_tar(folder / f"{number}.tar", [("a.jpg", b"x"), ("a.cls", label)])
    index_shards(find_tars(folder), out=folder / "o", classes=classes, first_class=first_class)
    shards = open_shards(folder / "o")
    return shards.classes, shards.labels().tolist()


def test_names_as_labels_are_numbered_over_all_tars(tmp_path):
    assert index_labels(tmp_path, b"dog", b"cat", b"dog") == (("cat", "dog"), [1, 0, 1])
    assert index_labels(tmp_path, b"dog", b"cat", b"dog", classes=["x", "dog", "cat"])[1] == [1, 2, 1]
    with pytest.raises(ValueError, match="1 labels are not among the 2 class names given, such as 'cat'"):
        index_labels(tmp_path, b"dog", b"cat", classes=["x", "dog"])
    with pytest.raises(ValueError, match="some labels are numbers, such as 0, and some are names, such as 'dog'"):
        index_labels(tmp_path, b"0", b"dog", b"0")


def test_classes_that_count_from_one_are_asked_about(tmp_path, caplog):
    assert index_labels(tmp_path, b"1", b"2")[1] == [1, 2]
    assert "the lowest is 1: if they count from 1, say --first-class 1" in caplog.text
    assert index_labels(tmp_path, b"1", b"2", first_class=1) == (("1", "2"), [0, 1])
    assert index_labels(tmp_path, b"1", b"2", classes=["x", "y"], first_class=1) == (("x", "y"), [0, 1])
    with pytest.raises(ValueError, match="class number 2, but only 2 class names were given; if they count from 1"):
        index_labels(tmp_path, b"1", b"2", classes=["x", "y"])


def test_members_need_not_be_neighbours(tmp_path):
    members = [("a.jpg", b"1"), ("b.jpg", b"22"), ("a.cls", b"1"), ("b.cls", b"2"), ("b.jpg", b"333"), ("b.cls", b"3")]
    entries = scan_tar(make_tar(tmp_path / "a.tar", members)).entries
    assert [(entry.key, entry.image.size, entry.label) for entry in entries] == [("a", 1, 1), ("b", 2, 2), ("b", 3, 3)]
    again = [("a.jpg", b"1"), ("a.cls", b"1"), ("b.jpg", b"22"), ("a.png", b"333"), ("a.cls", b"3")]
    entries = scan_tar(make_tar(tmp_path / "a.tar", again)).entries
    assert [(entry.key, entry.image.size, entry.label) for entry in entries] == [
        ("a", 1, 1),
        ("b", 2, None),
        ("a", 3, 3),
    ]


def test_folders_and_second_images_are_said_where_they_mean_nothing(tmp_path, caplog):
    make_tar(tmp_path / "a.tar", [("cat/1.jpg", b"x"), ("dog/1.jpg", b"x"), ("dog/1.png", b"map")])
    manifest, ignored = index_shards(find_tars(tmp_path), out=tmp_path / "o")
    assert manifest.classes is None
    assert "no labels and lie in 2 folders (cat, dog, ...)" in caplog.text
    assert dict(ignored) == {"second images of a sample, read by nothing: label maps are called .seg.png": 1}


def test_an_image_called_image_is_one(tmp_path):
    members = [("a.image.JPG", b"1"), ("a.cls", b"2"), ("b.rgb.png", b"22"), ("b.depth.png", b"333")]
    entries = scan_tar(make_tar(tmp_path / "a.tar", members)).entries
    assert [(entry.image.extension, entry.image.size, entry.label) for entry in entries] == [
        ("jpg", 1, 2),
        ("png", 2, None),
    ]
    assert [member.extension for member in entries[1].members] == ["depth.png"]


def test_keys_with_dots_are_named(tmp_path):
    make_tar(tmp_path / "a.tar", [(f"a.{n}.v1.jpg", b"x") for n in range(3000)])
    with pytest.raises(
        ValueError, match=r"which hold members of other kinds \(2000\), \.0\.v1\.jpg \(1\).* no other dot"
    ):
        index_shards(find_tars(tmp_path), out=tmp_path / "o")


def test_joined_tars_are_read_to_the_end(tmp_path):
    one = make_tar(tmp_path / "a", [("a.jpg", b"x")]).read_bytes()
    two = make_tar(tmp_path / "b", [("b.jpg", b"y")]).read_bytes()
    joined = tmp_path / "joined.tar"
    joined.write_bytes(one + bytes(512 * 300) + two)
    entries = scan_tar(joined).entries
    assert [entry.key for entry in entries] == ["a", "b"]
    assert joined.read_bytes()[entries[1].image.offset :][:1] == b"y"
    joined.write_bytes(one + b"signature" * 100)
    with pytest.raises(
        ValueError, match=r"its end is at byte 2048, and what follows at byte 10240 .* `truncate -s 2048`"
    ):
        scan_tar(joined)
    os.truncate(joined, 2048)
    assert len(scan_tar(joined).entries) == 1
    os.truncate(joined, 2**40)  # zeros that no disk holds
    start = time.monotonic()
    assert len(scan_tar(joined).entries) == 1
    assert time.monotonic() - start < 1


def test_compressed_tars_are_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(make_tar(tmp_path / "b", [("a.jpg", b"x")]).read_bytes()))
    with pytest.raises(ValueError, match=r"it is compressed \(gzip\).*unpack it"):
        scan_tar(tmp_path / "a.tar")


def test_truncated_tars_and_other_files_are_named(tmp_path):
    whole = make_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 2000), ("b.jpg", b"x" * 2000)]).read_bytes()
    for size, words in ((3000, "zero block"), (4000, "inside the member"), (5120, "zero block")):
        (tmp_path / "b.tar").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"b\.tar is no readable tar shard: .*({words})"):
            scan_tar(tmp_path / "b.tar")
    for content in (b"", b"hello", os.urandom(4096), b"PK\3\4" + bytes(2000)):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.tar is no readable tar shard"):
            scan_tar(tmp_path / "b.tar")


def test_a_member_that_claims_terabytes_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**43
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(ValueError, match="needs 8796093022208 bytes"):
        scan_tar(path)
    info = tarfile.TarInfo("name")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10**6
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * 10**6))
    with pytest.raises(ValueError, match="an extended header of 1000000 bytes"):
        scan_tar(path)


@settings(deadline=None, max_examples=200)
@given(place=st.integers(0, 6000), noise=st.binary(min_size=1, max_size=40), kind=st.sampled_from([1, 2]))
def test_damaged_tars_end_in_a_message_and_quickly(tmp_path_factory, place, noise, kind):
    path = tmp_path_factory.getbasetemp() / "fuzz.tar"
    make_tar(path, [("n" * 120 + ".jpg", b"x" * 700), ("b.cls", b"1")], format=kind)
    content = bytearray(path.read_bytes())
    content[place : place + len(noise)] = noise
    path.write_bytes(content)
    start = time.monotonic()
    try:
        for entry in scan_tar(path).entries:
            assert entry.image.offset + entry.image.size <= len(content)
    except ValueError as error:
        assert "fuzz.tar is no readable tar shard" in str(error)  # noqa: PT017 - either outcome is right
    assert time.monotonic() - start < 2


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is missing"):
        index_shards(find_tars(tmp_path / "nowhere"), out=tmp_path / "o")
    (tmp_path / "a.zip").touch()
    with pytest.raises(ValueError, match=r"matches '\*.tar'; it holds a.zip"):
        index_shards(find_tars(tmp_path), out=tmp_path / "o")
    make_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(ValueError, match="no sample with an image"):
        index_shards(find_tars(tmp_path), out=tmp_path / "o")
    make_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.cls", b"5")])
    with pytest.raises(ValueError, match="class number 5, but only 2 class names"):
        index_shards(find_tars(tmp_path), out=tmp_path / "o", classes=["x", "y"])


def test_what_is_refused_leaves_no_folder(tmp_path):
    make_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    (tmp_path / "kept").mkdir()
    for name in ("new", "kept"):
        with pytest.raises(ValueError, match="no sample with an image"):
            index_shards(find_tars(tmp_path), out=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "kept"]


def test_a_folder_marked_read_only_is_not_written_to_even_by_root(tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    make_tar(source / "a.tar", [("a.jpg", b"x")])
    source.chmod(0o555)
    with pytest.raises(
        ValueError, match=r"theirs is read-only; write manifest and index into another folder with --out"
    ):
        index_shards(find_tars(source), out=source)
    assert [path.name for path in source.iterdir()] == ["a.tar"]
    source.chmod(0o755)
    assert index_shards(find_tars(source), out=source)[0].shards[0].name == "a.tar"


@pytest.mark.skipif(not REAL_SHARDS.is_dir(), reason="the real shards are not on this machine: ../shared/data")
def test_real_foreign_shards_are_all_found(tmp_path):
    train, ignored = index_shards(find_tars(REAL_SHARDS, pattern="train-*.tar"), out=tmp_path / "train")
    val, _ = index_shards(find_tars(REAL_SHARDS, pattern="val-*.tar"), out=tmp_path / "val")
    assert (train.num_samples, len(train.shards), val.num_samples) == (9469, 4, 2000)
    assert not ignored
    shards = open_shards(tmp_path / "train")
    assert shards.read(3, 100).image[:3] == b"\xff\xd8\xff"
    counts = np.bincount(shards.labels())
    assert len(counts) == 10
    assert counts.sum() == 9469
    assert counts.min() > 800


def labelled(path):
    return [(entry.key, entry.image.size, entry.label) for entry in scan_tar(path).entries]


def test_labels_stay_with_the_images_of_their_own_tar_where_tars_are_joined(tmp_path):
    images = [(f"{n}.jpg", b"x") for n in range(2)]
    both = [member for n in range(2) for member in ((f"{n}.cls", b"%d" % n), (f"{n}.jpg", b"yy"))]
    for name, members in (("neighbours", both), ("all", sorted(both))):
        first, second = make_tar(tmp_path / "a.tar", images), make_tar(tmp_path / "b.tar", members)
        joined = tmp_path / f"{name}.tar"
        joined.write_bytes(first.read_bytes() + second.read_bytes())
        assert sorted(labelled(joined), key=lambda entry: entry[1]) == [
            *(("0", 1, None), ("1", 1, None)),
            *(("0", 2, 0), ("1", 2, 1)),
        ]
    # appended, as `tar -A` does, nothing tells where the first ends
    assert labelled(make_tar(tmp_path / "appended.tar", [*images, *both])) == labelled(tmp_path / "neighbours.tar")


def test_a_joined_tar_of_labels_alone_is_of_the_images_before_it(tmp_path):
    first = make_tar(tmp_path / "a.tar", [(f"{n}.jpg", b"x") for n in range(2)])
    second = make_tar(tmp_path / "b.tar", [(f"{n}.cls", b"%d" % n) for n in range(2)])
    (tmp_path / "ab.tar").write_bytes(first.read_bytes() + second.read_bytes())
    assert labelled(tmp_path / "ab.tar") == [("0", 1, 0), ("1", 1, 1)]
