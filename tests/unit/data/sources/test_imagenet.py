"""ImageNet in the layouts in which it is handed out."""

import io
import tarfile

import pytest

from data.sources.formats import find_source
from data.sources.imagenet import find_imagenet, is_imagenet
from tests.unit.data.write_options import write_options

FISH, SHARK, BALL = "n01440764", "n01494475", "n02802426"


@pytest.fixture
def imagenet(tmp_path, encoded):
    """Write train/ of three classes, and val/ as given: file name (with folder) by class."""

    def imagenet(*val):
        names = [f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in (BALL, FISH, SHARK) for n in range(2)]
        for number, name in enumerate([*names, *(f"val/{name}" for name in val)]):
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(number))
        return tmp_path / "in"

    return imagenet


def find(folder, *, index_folder=None, **options):
    return find_imagenet(write_options(folder, **options), index_folder)


def named_labels(source):
    return {
        path.rpartition("/")[2]: source.classes[label] for path, label in zip(source.paths, source.labels, strict=True)
    }


def test_class_numbers_are_ranks_of_the_wnids_also_where_val_lacks_some(imagenet):
    found = find(imagenet(f"{SHARK}/a.JPEG"))
    assert found["train"].classes == found["val"].classes == (FISH, SHARK, BALL)
    assert found["train"].labels == (0, 0, 1, 1, 2, 2)
    assert found["val"].labels == (1,)


KAGGLE = f"ImageId,PredictionString\nval_1,{BALL} 85 1 499 272 {BALL} 3 4 5 6\nval_2,{FISH} 1 2 3 4\n"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("LOC_val_solution.csv", KAGGLE),
        ("in/val_labels.txt", f"val_1.JPEG {BALL}\nval_2.JPEG {FISH}\nunused.JPEG {SHARK}\n"),
        ("in/val.txt", "val_1.JPEG 2\nval_2.JPEG 0\n"),
        ("in/val_labels.csv", f"val_1.JPEG,{BALL}\r\nval_2.JPEG,{FISH}\r\n"),
    ],
)
def test_a_flat_val_folder_gets_its_classes_from_a_list_near_it(imagenet, tmp_path, place, text):
    folder = imagenet("val_1.JPEG", "val_2.JPEG")
    (tmp_path / place).write_text(text)
    assert named_labels(find(folder)["val"]) == {"val_1.JPEG": BALL, "val_2.JPEG": FISH}


def test_a_flat_val_folder_without_its_labels_is_refused(imagenet, tmp_path):
    folder = imagenet("val_1.JPEG", "val_2.JPEG")
    with pytest.raises(ValueError, match=r"val is flat, and none of LOC_val_solution.csv.* --val-labels FILE"):
        find(folder)
    path = tmp_path / "list.txt"
    path.write_text(f"val_1.JPEG {FISH}\n")
    with pytest.raises(ValueError, match=r"list.txt names no class for 1 of the 2 images .*val_2"):
        find(folder, val_labels=path)
    for line in ("n99999999", "3", "", "-1"):
        path.write_text(f"val_1.JPEG {line}\n")
        with pytest.raises(
            ValueError, match=r"line 1 of .*list.txt is 'val_1.JPEG.* expected an image's name and its wnid"
        ):
            find(folder, val_labels=path)


def test_the_wnid_list_fixes_the_numbers_where_training_lacks_classes(imagenet, tmp_path):
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text(f"n00000001 first thing\n{FISH} tench, Tinca tinca\n{SHARK} white shark\n{BALL} basketball\n")
    found = find(imagenet(f"{BALL}/a.JPEG"), classes=names)
    assert found["train"].classes == ("n00000001", FISH, SHARK, BALL)
    assert found["val"].labels == (3,)
    names.write_text(f"{FISH}\n{SHARK}\n")
    with pytest.raises(ValueError, match=f"classes .* not to train on: {BALL}|not in the list of classes: {BALL}"):
        find(imagenet(), classes=names)


@pytest.fixture
def class_tars(tmp_path, encoded):
    (tmp_path / "tars").mkdir()
    for label, wnid in enumerate((BALL, FISH)):
        with tarfile.open(tmp_path / "tars" / f"{wnid}.tar", "w") as tar:
            for number in range(3):
                info = tarfile.TarInfo(f"{wnid}_{number}.JPEG")
                info.size = len(encoded(3 * label + number))
                tar.addfile(info, io.BytesIO(encoded(3 * label + number)))
    return tmp_path / "tars"


def test_a_tar_for_each_class_is_read_in_place(class_tars, tmp_path, encoded):
    (tmp_path / "index").mkdir()
    source = find(class_tars, index_folder=tmp_path / "index")["train"]
    assert source.classes == (FISH, BALL)
    assert source.labels == (0, 0, 0, 1, 1, 1)
    sample = source.prepare(4)
    assert (sample.members, sample.label, sample.key) == ({"jpg": encoded(1)}, 1, None)
    assert sample.source.endswith(f"{BALL}.tar!{BALL}_1")
    assert len(list(class_tars.iterdir())) == 2


def test_imagenet_is_told_from_other_folders(imagenet, class_tars, tmp_path, encoded):
    assert find_source(write_options(imagenet()))[0] == find_source(write_options(class_tars))[0] == "imagenet"
    assert not is_imagenet(tmp_path)
    with pytest.raises(ValueError, match=r"expected train/ with a folder for each wnid, or a tar for each"):
        find(tmp_path)
    (tmp_path / "in" / "test").mkdir()
    (tmp_path / "in" / "LOC_sample_submission").mkdir()
    assert list(find(tmp_path / "in")) == ["train"]
