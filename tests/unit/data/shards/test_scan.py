"""Indexing tars that anyone may have written: the same samples as WebDataset finds, and no harm from hostile ones."""

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

from data.shards.scan import index_shards, scan_tar
from data.shards.shard_set import open_shards

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
    manifest, ignored = index_shards(source, out=tmp_path / "ours", pattern="train-*.tar")
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


@pytest.mark.parametrize("label", [b"x", b"", b"-1", b"9" * 100, b"1.5", "٣".encode()])
def test_labels_that_are_no_number_are_counted(tmp_path, label):
    scan = scan_tar(make_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.cls", label)]))
    assert scan.entries[0].label is None
    assert scan.ignored == {"labels that are no class number": 1}


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
    with pytest.raises(ValueError, match="nowhere is no folder"):
        index_shards(tmp_path / "nowhere", out=tmp_path / "o")
    (tmp_path / "a.zip").touch()
    with pytest.raises(ValueError, match=r"matches '\*.tar'; it holds a.zip"):
        index_shards(tmp_path, out=tmp_path / "o")
    make_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(ValueError, match="no sample with an image"):
        index_shards(tmp_path, out=tmp_path / "o")
    make_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.cls", b"5")])
    with pytest.raises(ValueError, match="class number 5, but only 2 class names"):
        index_shards(tmp_path, out=tmp_path / "o", classes=["x", "y"])


def test_a_folder_marked_read_only_is_not_written_to_even_by_root(tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    make_tar(source / "a.tar", [("a.jpg", b"x")])
    source.chmod(0o555)
    with pytest.raises(
        ValueError, match=r"theirs is read-only; write manifest and index into another folder with --out"
    ):
        index_shards(source, out=source)
    assert [path.name for path in source.iterdir()] == ["a.tar"]
    source.chmod(0o755)
    assert index_shards(source, out=source)[0].shards[0].name == "a.tar"


@pytest.mark.skipif(not REAL_SHARDS.is_dir(), reason="the real shards are not on this machine: ../shared/data")
def test_real_foreign_shards_are_all_found(tmp_path):
    train, ignored = index_shards(REAL_SHARDS, out=tmp_path / "train", pattern="train-*.tar")
    val, _ = index_shards(REAL_SHARDS, out=tmp_path / "val", pattern="val-*.tar")
    assert (train.num_samples, len(train.shards), val.num_samples) == (9469, 4, 2000)
    assert not ignored
    shards = open_shards(tmp_path / "train")
    assert shards.read(3, 100).image[:3] == b"\xff\xd8\xff"
    counts = np.bincount(shards.labels())
    assert len(counts) == 10
    assert counts.sum() == 9469
    assert counts.min() > 800
