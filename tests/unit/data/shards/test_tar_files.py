"""Which tars a folder, a name or a pattern stands for, and what tells splits apart."""

import json

import pytest

from data.shards.tar_files import find_tars, find_tars_by_split, split_in_name


@pytest.fixture
def touch(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return touch


def names(tars):
    return [tar.name for tar in tars]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0000", "train"),
        ("imagenet1k-validation-00", "val"),
        ("Training", "train"),
        ("trainset_1", "train"),
        ("train2017", "train"),
        ("test", "test"),
        ("n01440764", None),
        ("street", None),
        ("valley-3", None),
        ("strain", None),
        ("00000", None),
    ],
)
def test_words_in_names_tell_the_split(name, split):
    assert split_in_name(name) == split


def test_braces_asterisks_and_single_tars_are_found(touch):
    folder = touch("s-000.tar", "s-001.tar", "s-002.tar", "other.tar", "s-9.txt")
    assert names(find_tars(folder / "s-{000..001}.tar")) == ["s-000.tar", "s-001.tar"]
    assert names(find_tars(folder, pattern="s-{000..001}.tar")) == ["s-000.tar", "s-001.tar"]
    assert names(find_tars(folder, pattern="{s-*,other}.tar")) == ["s-000.tar", "s-001.tar", "s-002.tar", "other.tar"]
    assert names(find_tars(str(folder / "s-*.tar"))) == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert names(find_tars(folder / "other.tar")) == ["other.tar"]
    assert len(find_tars(folder)) == 4


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("s-{000..005}.tar", r"3 of the 6 names of 's-\{000..005\}.tar' match no file, such as s-003.tar"),
        ("s-{000..000", "a brace without its other one"),
        ("s-{0..99999999999}.tar", "more than 1000000 tars"),
        ("s-{0..9999}{0..9999}.tar", "more than 1000000 tars"),
        (f"s-{{0..{'9' * 5000}}}.tar", "more than 1000000 tars"),
        ("*.gz", r"matches '\*.gz'; it holds s-000.tar"),
        ("/etc/*", "--pattern is of names in"),
    ],
)
def test_patterns_that_fit_nothing_are_named(touch, pattern, words):
    with pytest.raises(ValueError, match=words):
        find_tars(touch("s-000.tar", "s-001.tar", "s-002.tar"), pattern=pattern)


def test_brackets_in_a_folder_s_own_name_are_no_pattern(touch):
    folder = touch("a [x] {1..2}/s.tar") / "a [x] {1..2}"
    assert names(find_tars(folder)) == ["s.tar"]


def test_published_imagenet_shards_are_told_apart(touch):
    folder = touch(*(f"imagenet1k-train-{n:04d}.tar" for n in range(3)), "imagenet1k-validation-00.tar", "_info.json")
    with pytest.raises(ValueError, match=r"--pattern 'imagenet1k-train-\*.tar' \(3 tars\), --pattern 'imagenet1k-vali"):
        find_tars(folder)
    groups = find_tars_by_split(folder)
    assert {split: len(group.tars) for split, group in groups.items()} == {"train": 3, "val": 1}
    assert len(find_tars(folder, pattern="imagenet1k-train-*.tar")) == 3


@pytest.mark.parametrize("damage", [None, "[", "[]", '{"splits": 3}', '{"splits": {"train": {"filenames": [3]}}}'])
def test_info_json_says_which_is_which(touch, damage):
    folder = touch("a-0.tar", "a-1.tar", "b-0.tar")
    splits = {"train": {"filenames": ["a-0.tar", "a-1.tar"]}, "validation": {"filenames": ["b-0.tar"]}}
    (folder / "_info.json").write_text(damage or json.dumps({"splits": splits}))
    groups = find_tars_by_split(folder)
    sizes = {split: len(group.tars) for split, group in groups.items()}
    assert sizes == ({"train": 3} if damage else {"train": 2, "val": 1})


def test_folders_of_tars_are_splits_where_their_names_say_so(touch):
    folder = touch("train/0.tar", "train/1.tar", "val/0.tar", "other/x.txt")
    assert {split: len(group.tars) for split, group in find_tars_by_split(folder).items()} == {"train": 2, "val": 1}
    with pytest.raises(ValueError, match=r"choose one with --source .*/train \(2 tars\), --source .*/val \(1 tars\)"):
        find_tars(folder)
    touch("part-2/0.tar")
    with pytest.raises(ValueError, match=r"holds no tars itself, its folders do: choose one with --source .*part-2"):
        find_tars_by_split(folder)


def test_tars_of_a_split_beside_others_are_asked_about(touch):
    with pytest.raises(ValueError, match=r"--pattern 'extra-\*.tar' \(no split\), --pattern 'train-\*.tar' \(train\)"):
        find_tars(touch("train-0.tar", "extra-0.tar", "extra-1.tar"))


def test_compressed_tars_are_named(touch):
    with pytest.raises(ValueError, match=r"holds compressed tars \(a.tar.gz, ...\).*gunzip"):
        find_tars(touch("a.tar.gz"))
