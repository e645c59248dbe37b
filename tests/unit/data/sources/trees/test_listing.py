"""Walks find what is there once, follow links, and end."""

import pytest

from data.sources.trees import listing
from data.sources.trees.listing import holds, images_of, num_others, walk


def test_links_are_followed_but_not_in_circles(tree):
    root = tree("a/1.jpg", "b/deep/2.JPG", "b/x.txt", ".hidden/3.jpg", "__MACOSX/4.jpg")
    (root / "a" / "again").symlink_to(root)
    (root / "b" / "self").symlink_to("self")
    (root / "c").symlink_to(root / "b" / "deep")
    names = [path.removeprefix(f"{root}/") for path in images_of(root, deep=True)]
    assert names == ["a/1.jpg", "b/deep/2.JPG", "c/2.JPG"]
    assert images_of(root / "a", deep=False) == [f"{root}/a/1.jpg"]
    assert num_others(walk(root)) == "1 without suffix, 1 .txt"


def test_a_broken_link_counts_as_the_image_that_it_was(tree):
    root = tree("a/")
    (root / "a" / "1.jpg").symlink_to("nowhere.jpg")
    assert images_of(root, deep=True) == [f"{root}/a/1.jpg"]
    assert holds(root)


def test_folders_in_folders_without_end_are_refused(tree):
    root = tree("/".join("x" * 102) + "/1.jpg")
    with pytest.raises(ValueError, match="lies more than 100 folders deep"):
        images_of(root, deep=True)


def test_the_first_image_answers_and_a_search_without_end_ends(tree, monkeypatch):
    root = tree(*(f"a/{number}.txt" for number in range(30)), "b/x/1.png")
    assert holds(root)
    assert not holds(root, deep=False)
    monkeypatch.setattr(listing, "MOST_ENTRIES", 10)
    assert not holds(root)
