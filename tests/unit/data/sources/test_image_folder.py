"""Folders of images as users have them, and what is done to the files."""

import pytest

from data.images.decode import decode_rgb
from data.sources.image_folder import find_images
from data.writing.journal import Rejected
from data.writing.writer import NewSample
from tests.unit.data.write_options import write_options


def find(folder, **options):
    return find_images(write_options(folder, **options), folder)


def test_class_folders_become_classes_in_the_order_of_their_names(image_folder):
    found = find(image_folder("dog/1.jpg", "cat/deep/2.JPEG", "cat/3.png", "dog/notes.txt", ".git/4.jpg", "empty/x.md"))
    assert list(found) == ["train"]
    source = found["train"]
    assert source.classes == ("cat", "dog")
    assert sorted(zip([path.rpartition("/")[2] for path in source.paths], source.labels, strict=True)) == [
        ("1.jpg", 1),
        ("2.JPEG", 0),
        ("3.png", 0),
    ]


def test_a_flat_folder_and_a_single_class_folder_have_no_labels(image_folder):
    assert find(image_folder("1.jpg", "2.jpg"))["train"].classes is None
    assert find(image_folder("only/1.jpg") / "only")["train"].labels is None
    source = find(image_folder("nest/only/1.jpg") / "nest")["train"]
    assert source.classes is None
    assert len(source) == 1


def test_train_and_val_folders_are_splits_with_the_same_classes(image_folder):
    found = find(image_folder("train/a/1.jpg", "train/b/2.jpg", "train/c/3.jpg", "val/c/4.jpg", "val/a/5.jpg"))
    assert found["train"].classes == found["val"].classes == ("a", "b", "c")
    assert found["val"].labels == (0, 2)


def test_a_single_class_to_validate_on_keeps_its_number(image_folder):
    found = find(image_folder("train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg"))
    assert (found["val"].classes, found["val"].labels) == (("a", "b"), (1,))


def test_a_split_without_class_folders_beside_one_with_them_is_told(image_folder, caplog):
    found = find(image_folder("train/a/1.jpg", "train/b/2.jpg", "val/3.jpg"))
    assert found["train"].classes == ("a", "b")
    assert found["val"].labels is None
    assert "only train has class folders; val is written without labels" in caplog.text


def test_a_class_may_be_called_train(image_folder):
    found = find(image_folder("train/1.jpg", "plane/2.jpg"))
    assert list(found) == ["train"]
    assert found["train"].classes == ("plane", "train")


def test_a_table_beside_images_without_classes_is_named(image_folder, caplog):
    root = image_folder("train/1.jpg", "train/2.jpg")
    (root / "labels.csv").write_text("id,breed\n1,a\n")
    assert find(root)["train"].classes is None
    assert f"no class is read from {root}/labels.csv, which lies beside the images: for that, --source" in caplog.text


def test_what_the_folders_are_can_be_said(image_folder):
    root = image_folder("train/a/1.jpg", "val/b/1.jpg", "more/1.jpg")
    assert find(root, splits="none")["train"].classes == ("more", "train", "val")
    found = find(root, splits="val")
    assert (list(found), len(found["train"])) == (["train"], 1)


def test_what_cannot_be_understood_is_named(image_folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere is missing"):
        find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no image in .*: expected files ending in .jpg"):
        find(tmp_path)
    with pytest.raises(ValueError, match=r"images of its own \(1.jpg, ...\) beside folders with images \(dog\)"):
        find(image_folder("1.jpg", "dog/2.jpg"))
    with pytest.raises(ValueError, match="classes to validate on that are not to train on: z"):
        find(image_folder("s/train/a/1.jpg", "s/train/b/2.jpg", "s/val/a/3.jpg", "s/val/z/4.jpg") / "s")


def test_bytes_are_kept_unless_a_resize_is_asked_for(image_folder, encoded):
    source = find(image_folder("1.jpg"))["train"]
    assert source.prepare(0).members == {"jpg": encoded(0)}
    small = find(image_folder("1.jpg"), size=32)["train"].prepare(0)
    assert decode_rgb(small.members["jpg"]).shape == (32, 45, 3)
    assert find(image_folder("1.jpg"), size=400)["train"].prepare(0).members == {"jpg": encoded(0)}


def test_the_member_is_named_for_what_it_is(tmp_path, encoded):
    (tmp_path / "a.jpg").write_bytes(encoded(0, format="PNG"))
    assert list(find(tmp_path)["train"].prepare(0).members) == ["png"]


def test_unreadable_files_are_rejected_with_the_reason(tmp_path, encoded):
    (tmp_path / "a.jpg").write_bytes(b"hello")
    (tmp_path / "b.jpg").write_bytes(encoded(0, height=200, width=300)[:-500])
    source = find(tmp_path)["train"]
    assert [type(source.prepare(n)) for n in (0, 1)] == [Rejected, Rejected]
    assert "a.jpg" in source.prepare(0).source
    assert "no image" in source.prepare(0).reason
    assert isinstance(find(tmp_path, check="header")["train"].prepare(1), NewSample)
