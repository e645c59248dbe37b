"""Images that a table names are found, or it is said where they were looked for."""

import pytest

from data.sources.tables.places import find_places


@pytest.fixture
def found(tmp_path):
    root = tmp_path / "set"
    for name in ("1.jpg", "photos/2.jpg", "photos/3.v2.jpg", "photos/4.PNG", "other/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()

    def found(*names, root=root, is_given=False):
        paths = find_places(names, root=root, table=root / "list.csv", is_given=is_given)
        return [path.removeprefix(f"{tmp_path}/set/") for path in paths]

    return found


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (("1.jpg", "missing.jpg"), ["1.jpg", "missing.jpg"]),
        (("1", "missing"), ["1.jpg", "missing"]),
        (("1.jpg", "photos/2"), ["1.jpg", "photos/2.jpg"]),
        (("photos\\2.jpg", "1.jpg"), ["photos/2.jpg", "1.jpg"]),
        (("3.v2.jpg", "2.jpg"), ["photos/3.v2.jpg", "photos/2.jpg"]),
        (("4", "3.v2"), ["photos/4.PNG", "photos/3.v2.jpg"]),
        (("./1.jpg",), ["1.jpg"]),
    ],
)
def test_names_lead_to_files(found, names, paths):
    assert found(*names) == paths


def test_paths_may_start_above_the_tables_folder(found):
    assert found("set/1.jpg") == ["1.jpg"]


def test_what_is_nowhere_or_in_several_places_is_said(found, tmp_path):
    with pytest.raises(ValueError, match=r"9.jpg, the first image of .* is missing; .* --images FOLDER"):
        found("9.jpg")
    with pytest.raises(ValueError, match=r"2.jpg, the first image of .*, is in .*other and in .*photos: say which"):
        found("2.jpg")
    with pytest.raises(ValueError, match="is missing"):
        found("3.v2.jpg", is_given=True)
    (tmp_path / "set" / "1.png").touch()
    with pytest.raises(ValueError, match=r"has 1.jpg and 1.png: the table's names need their suffixes"):
        found("1")
