"""A command fills a folder that is absent, empty or its own, and no other."""

import pytest

from engine.run.own_folder import check_own_folder


def check(folder):
    check_own_folder(folder, marks=("answers.json",), is_own=lambda name: name.endswith(".json"), option="--out")


def test_absent_empty_and_own_folders_are_taken(tmp_path):
    check(tmp_path / "absent")
    check(tmp_path)
    (tmp_path / "answers.json").touch()
    (tmp_path / "more.json").touch()
    check(tmp_path)


@pytest.mark.parametrize("names", [["more.json"], ["answers.json", "thesis.txt"]])
def test_what_might_be_lost_is_named(names, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"holds {names[-1]}, which might be lost; choose an empty folder with --out"):
        check(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        check(tmp_path / "file")
