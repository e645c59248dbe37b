"""Several folders as one data set."""

import dataclasses
import pickle

import pytest

from data.shards.manifest import merge_manifests, read_manifest, write_manifest
from data.shards.shard_set import ShardSet, open_shards


def test_several_folders_read_as_one_set(write):
    first, second = write(12, name="first", per_shard=5), write(7, name="second", per_shard=4)
    both = open_shards(first.folder, second.folder)
    assert both.sizes == first.sizes + second.sizes == (5, 5, 2, 4, 3)
    assert both.parts == (range(3), range(3, 5))
    assert first.parts == (range(3),)
    samples = [both.read(shard, position) for shard, size in enumerate(both.sizes) for position in range(size)]
    assert [sample.id for sample in samples] == list(range(19))
    assert [sample.key for sample in samples] == [f"{n:06d}" for n in [*range(12), *range(7)]]
    assert samples[15].image == second.read(0, 3).image
    assert both.labels().tolist() == [*first.labels().tolist(), *second.labels().tolist()]
    assert both.classes == first.classes
    assert [both.shard_of(n) for n in (0, 4, 5, 12, 18)] == [
        f"{folder.folder}/shard-00000{n}.tar"
        for folder, n in [(first, 0), (first, 0), (first, 1), (second, 0), (second, 1)]
    ]
    copy = pickle.loads(pickle.dumps(both.subset([0, 18])))
    assert (copy.parts, copy.sizes, copy.read(4, 0).id) == (both.parts, (1, 0, 0, 0, 1), 18)


def test_a_list_of_folders_is_as_good_and_one_in_it_is_that_folder(write):
    first, second = write(6, name="first"), write(6, name="second")
    assert open_shards([first.folder, str(second.folder)]).sizes == (5, 1, 5, 1)
    assert open_shards([first.folder]).manifest == first.manifest
    with pytest.raises(ValueError, match="at least one folder"):
        open_shards([])


def test_the_digest_of_several_folders_is_that_of_their_content(write, tmp_path):
    first, second = write(6, name="first"), write(7, name="second")
    digest = open_shards(first.folder, second.folder).manifest.digest
    assert open_shards(second.folder, first.folder).manifest.digest != digest
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    assert open_shards(moved, second.folder).manifest.digest == digest


def test_folders_may_be_named_by_relative_paths_and_from_elsewhere(write, tmp_path, monkeypatch):
    first, second = write(6, name="first"), write(6, name="second")
    monkeypatch.chdir(tmp_path)
    both = open_shards("first", "second")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert both.read(2, 3).image == second.read(0, 3).image
    assert both.subset([7]).read(2, 0).image == second.read(0, 1).image
    assert both.shard_of(6) == f"{second.folder}/shard-000000.tar"
    assert open_shards("../first", second.folder).read(0, 1).image == first.read(0, 1).image


def test_a_url_and_a_local_folder_are_one_set(write):
    shards = write(6)
    info = shards.manifest.shards[0]
    merged = merge_manifests(["https://host/far", shards.folder], [shards.manifest, shards.manifest])
    both = ShardSet("both", manifest=merged, root="/")
    assert both.shard_of(0) == f"https://host/far/{info.name}"
    assert both.read(2, 0).image == shards.read(0, 0).image
    assert both.cached_tar(0) is not None
    assert both.cached_tar(2) is None


def test_folders_with_other_classes_do_not_mix_but_unlabelled_ones_do(write):
    first, second = write(6, name="first"), write(6, name="second", classes=("a", "b"))
    with pytest.raises(ValueError, match=r"the 2 classes of .*second are not the 3 of .*first"):
        open_shards(first.folder, second.folder)
    without_labels = open_shards(first.folder, second.folder, labelled=False)
    assert (without_labels.classes, without_labels.num_samples) == (None, 12)
    assert open_shards(first.folder, first.folder, labelled=False).classes == ("a", "b", "c")
    unlabelled = write(6, name="third", classes=None)
    assert open_shards(unlabelled.folder, first.folder).classes == ("a", "b", "c")


def test_a_local_manifest_names_remote_shards_only_of_schemes_on_the_list(write):
    shards = write(6)
    for name, fits in [("https://host/a.tar", True), ("pipe:cat a.tar", False), ("https://me:pw@host/a.tar", False)]:
        lines = (dataclasses.replace(shards.manifest.shards[0], name=name), *shards.manifest.shards[1:])
        write_manifest(shards.folder, dataclasses.replace(shards.manifest, shards=lines))
        if fits:
            assert read_manifest(shards.folder).shards[0].name == name
        else:
            with pytest.raises(ValueError, match=r"no manifest of this program \((pipe: cannot|the URL of host holds)"):
                read_manifest(shards.folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "[" * 10**6,
        lambda text: text.replace('"num_samples": 5', f'"num_samples": {10**40}'),
        lambda text: text.replace('"shards"', '"sherds"'),
        lambda text: text[:-20],
        lambda text: text.replace('"num_samples": 5', f'"num_samples": {2**30}'),
        lambda text: text.replace('"shards"', '"x": [' + "{}," * 2_000_000 + '0], "shards"'),
        lambda text: "<html>Please log in</html>",
    ],
)
def test_what_is_no_manifest_is_named(write, damage):
    folder = write(6).folder
    path = folder / "manifest.json"
    text = damage(path.read_text())
    path.write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json is no manifest of this program .*make it again with `index`"):
        read_manifest(folder)


def test_an_index_that_points_beyond_its_tar_is_refused(write):
    shards = write(6)
    index = shards.folder / "shard-000000.idx"
    content = bytearray(index.read_bytes())
    content[64:72] = (2**63 + 5).to_bytes(8, "little")
    index.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-000000\.tar points beyond its end"):
        open_shards(shards.folder).read(0, 0)


def damage_index(shards, **fields):
    """Change fields of all records of the first index."""
    path = shards.folder / "shard-000000.idx"
    content = bytearray(path.read_bytes())
    places = {"image_size": (8, 8), "num_members": (40, 4), "image_offset": (0, 8)}
    for number in range(shards.sizes[0]):
        for name, value in fields.items():
            place, size = places[name]
            start = 64 + 48 * number + place
            content[start : start + size] = value.to_bytes(size, "little")
    path.write_bytes(content)


def test_members_that_are_more_than_their_tar_are_refused(write):
    shards = write(6)
    damage_index(shards, image_offset=0, image_size=shards.manifest.shards[0].size_bytes // 2)
    with pytest.raises(
        ValueError, match=r"shard-000000.idx names members of .* bytes in a tar of .*; run `index` again"
    ):
        open_shards(shards.folder).read(0, 0)


def test_a_sample_of_a_million_members_is_refused(write):
    shards = write(6)
    damage_index(shards, num_members=10**6)
    with pytest.raises(ValueError, match=r"shard-000000.idx is damaged \(1000000 members of one sample\)"):
        open_shards(shards.folder).read(0, 0)


def test_what_one_micro_batch_takes_is_bounded(write, monkeypatch):
    monkeypatch.setattr("data.shards.shard_set.MAX_READ_BYTES", 3000)
    shards = write(6)
    assert shards.read(0, 0).key == "000000"
    with pytest.raises(
        ValueError, match=r"5 samples of a micro-batch take .* the largest is .*smaller data.micro-batch-size"
    ):
        shards.read_many([(0, n, 0) for n in range(5)])
