"""Shards: ordinary WebDataset tars, the same bytes every time, never half of one under its final name."""

import json
import tarfile
import warnings

import pytest

from data.shards.index import ShardIndex
from data.shards.manifest import read_manifest
from data.shards.shard_set import open_shards
from data.writing.journal import Rejected, check_folder
from data.writing.writer import NewSample, ShardLimits, write_shards


def samples(encoded, count=7):
    return [
        NewSample(source=str(n), members={"jpg": encoded(n), "json": b'{"n": %d}' % n, "seg.png": b"map"}, label=n % 2)
        for n in range(count)
    ]


def test_the_same_samples_give_the_same_bytes(encoded, tmp_path):
    for name in ("one", "two"):
        write_shards(samples(encoded), out=tmp_path / name, classes=("a", "b"), limits=ShardLimits(samples=3))
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert sorted(one) == sorted(
        ["manifest.json", *(f"shard-00000{n}.{kind}" for n in range(3) for kind in ("tar", "idx", "sources.jsonl"))]
    )


def test_the_index_points_at_the_members(encoded, tmp_path):
    manifest = write_shards(samples(encoded), out=tmp_path, classes=("a", "b"), limits=ShardLimits())
    with tarfile.open(tmp_path / manifest.shards[0].name) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
        assert all(member.mtime == member.uid == member.gid == 0 for member in tar.getmembers())
    index = ShardIndex(tmp_path / manifest.shards[0].index)
    assert len(index) == 7
    for entry in (index[position] for position in range(7)):
        for member in (entry.image, *entry.members):
            assert members[f"{entry.key}.{member.extension}"] == (member.offset, member.size)
    shards = open_shards(tmp_path)
    assert shards.read_member(0, 4, extension="json") == b'{"n": 4}'
    assert shards.read_member(0, 4, extension="txt") is None


def test_webdataset_reads_the_same_samples(encoded, tmp_path):
    manifest = write_shards(samples(encoded), out=tmp_path, classes=("a", "b"), limits=ShardLimits(samples=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        urls = [str(tmp_path / shard.name) for shard in manifest.shards]
        found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [(item["__key__"], item["jpg"], item["cls"], item["json"]) for item in found] == [
        (f"{n:06d}", encoded(n), str(n % 2).encode(), b'{"n": %d}' % n) for n in range(7)
    ]


def test_a_manifest_reads_back_and_its_digest_is_the_contents(encoded, tmp_path):
    written = write_shards(samples(encoded), out=tmp_path / "a", classes=("a", "b"), limits=ShardLimits())
    assert read_manifest(tmp_path / "a") == written
    assert (tmp_path / "a" / "manifest.json").read_text().count("\n  {") == 1
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_manifest(tmp_path / "b").digest == written.digest
    other = write_shards(samples(encoded, 6), out=tmp_path / "c", classes=("a", "b"), limits=ShardLimits())
    assert other.digest != written.digest


def test_shards_are_closed_when_full(encoded, tmp_path):
    limits = ShardLimits(size_bytes=len(encoded(0)) * 2)
    manifest = write_shards(samples(encoded), out=tmp_path, classes=None, limits=limits)
    assert len(manifest.shards) > 2
    assert manifest.num_samples == 7


def test_unreadable_files_go_into_the_ledger(encoded, tmp_path):
    mixed = [Rejected(source="x.jpg", reason="broken"), *samples(encoded, 2)]
    assert write_shards(mixed, out=tmp_path, classes=None, limits=ShardLimits()).num_samples == 2
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == {"source": "x.jpg", "reason": "broken"}


def test_too_many_unreadable_files_stop_the_writer(encoded, tmp_path):
    mixed = [*samples(encoded, 2), *(Rejected(source=f"{n}.jpg", reason="broken") for n in range(9))]
    with pytest.raises(
        ValueError, match=r"4 files cannot be read, the last 3.jpg \(broken\).*raise --max-bad \(now 3\)"
    ):
        write_shards(mixed, out=tmp_path, classes=None, limits=ShardLimits(max_bad=3))
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ValueError, match=r"no manifest.json"):
        open_shards(tmp_path)


def test_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no readable image: 1 files were tried, for example x.jpg \(broken\)"):
        write_shards([Rejected(source="x.jpg", reason="broken")], out=tmp_path, classes=None, limits=ShardLimits())


def test_a_killed_writer_leaves_no_whole_looking_shard_and_can_start_again(encoded, tmp_path):
    def killed():
        yield from samples(encoded, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(killed(), out=tmp_path, classes=None, limits=ShardLimits(samples=3))
    assert not (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "shard-000001.tar").exists()
    assert (tmp_path / "shard-000001.tar.partial").exists()
    manifest = write_shards(samples(encoded, 2), out=tmp_path, classes=None, limits=ShardLimits())
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        *(f"shard-000000.{kind}" for kind in ("tar", "idx", "sources.jsonl")),
    }
    assert manifest.num_samples == 2


def test_other_peoples_folders_are_left_alone(encoded, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty"):
        write_shards(samples(encoded), out=tmp_path, classes=None, limits=ShardLimits())
    write_shards(samples(encoded), out=tmp_path / "a", classes=None, limits=ShardLimits())
    with pytest.raises(ValueError, match="already holds shards"):
        write_shards(samples(encoded), out=tmp_path / "a", classes=None, limits=ShardLimits())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_list_beside_each_shard_leads_from_keys_to_files(encoded, tmp_path):
    names = ["in/a.jpg", "in/b\n\udcff.jpg", "in/c.jpg"]
    new = [NewSample(source=name, members={"jpg": encoded(n)}) for n, name in enumerate(names)]
    write_shards(new, out=tmp_path, classes=None, limits=ShardLimits(samples=2))
    lists = [path.read_text().splitlines() for path in sorted(tmp_path.glob("*.sources.jsonl"))]
    assert [[json.loads(line) for line in lines] for lines in lists] == [
        [{"key": "000000", "source": names[0]}, {"key": "000001", "source": names[1]}],
        [{"key": "000002", "source": names[2]}],
    ]


@pytest.mark.parametrize("name", ["shard-000000.tar", "bad.jsonl"])
def test_shards_of_another_writer_with_our_names_are_left_alone(name, encoded, tmp_path):
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(ValueError, match=rf"is not empty \(it holds {name}\)"):
        write_shards(samples(encoded), out=tmp_path, classes=None, limits=ShardLimits())
    with pytest.raises(ValueError, match="is not empty"):
        check_folder(tmp_path, plan={})
    assert (tmp_path / name).read_bytes() == b"theirs"
