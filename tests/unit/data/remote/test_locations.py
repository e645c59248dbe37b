"""Where data may lie: local paths and a short list of schemes."""

from pathlib import Path

import pytest

from data.remote.locations import check_location, is_remote, join


@pytest.mark.parametrize("place", ["shards", "/a/b", Path("a/b"), "./odd:name", "../up"])
def test_local_paths_are_left_alone(place):
    assert not is_remote(place)
    assert check_location(place) == str(place)


@pytest.mark.parametrize("place", ["https://host/a", "http://host:8000/a", "s3://bucket/a#b", "gs://bucket/a"])
def test_urls_of_the_list_pass_as_text_and_as_paths(place):
    assert check_location(place) == check_location(place + "/") == check_location(Path(place)) == place


@pytest.mark.parametrize(
    "place",
    ["pipe:cat x", "file:///etc/passwd", "simplecache::s3://b/a", "ftp://host/a", "S3://b/a", "https:host", "data:,x"],
)
def test_other_schemes_are_refused_with_the_list(place):
    with pytest.raises(ValueError, match=r"cannot be read, only local paths and http://, https://, s3://, gs://"):
        check_location(place)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("https://me:hunter2@host/a", r"the URL of host holds a user name or password"),
        ("https://host/a?token=hunter2", r"https://host/a has a query"),
        ("https://host/a/../b", r"leads through '..'"),
    ],
)
def test_secrets_in_urls_are_refused_and_not_repeated(place, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_location(place)
    assert "hunter2" not in str(caught.value)


def test_names_are_joined_to_their_folder():
    assert join("a", "b.tar") == join(Path("a"), "b.tar") == "a/b.tar"
    assert join("a", "/tars/b.tar") == "/tars/b.tar"
    assert join("a", "s3://bucket/b.tar") == "s3://bucket/b.tar"
    assert join("https://host/a/", "b.tar") == "https://host/a/b.tar"


@pytest.mark.parametrize("name", ["/etc/passwd", "../b.tar", "a/../../b.tar"])
def test_a_remote_manifest_names_nothing_outside_its_folder(name):
    with pytest.raises(ValueError, match="lies outside of its folder"):
        join("https://host/a", name)
