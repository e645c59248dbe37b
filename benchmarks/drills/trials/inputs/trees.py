"""Folders as users have them: wrapped, divided, with things beside; what they are taken for, and what is asked."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drills.trials.case import Case

WRITE = ["data/main.py", "write", "--source", "in", "--out", "out", "--processes", "1"]
Content = str | bytes


def picture(number: int, *, suffix: str = ".jpg", mode: str = "RGB") -> bytes:
    """Encode a small image of its own for each number."""
    content = io.BytesIO()
    values = (np.arange(16 * 16 * 3).reshape(16, 16, 3) * (number + 1)) % 256
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "L":
        image = Image.fromarray((values[..., 0] % 3).astype(np.uint8))
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(suffix.lower(), suffix[1:].upper())
    image.save(content, kind)
    return content.getvalue()


def files(*names: str, maps: str = "", texts: dict[str, Content] | None = None) -> Callable[[Path], None]:
    """Say which files to make: images (label maps below a folder called ``maps``), and others with their content."""

    def make(folder: Path) -> None:
        for number, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir(exist_ok=True)
                continue
            is_map = bool(maps) and maps in name
            path.write_bytes(picture(number, suffix=path.suffix, mode="L" if is_map else "RGB"))
        for name, content in (texts or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def written(classes: list[str] | None, **counts: int) -> Callable[[Path], str | None]:
    """Check which classes and how many samples of each split were written."""

    def check(folder: Path) -> str | None:
        for split, count in counts.items():
            place = folder / "out" / split if len(counts) > 1 else folder / "out"
            if not (place / "manifest.json").is_file():
                return f"{split} was not written"
            manifest = json.loads((place / "manifest.json").read_text())
            samples = sum(shard["num_samples"] for shard in manifest["shards"])
            if (manifest["classes"], samples) != (classes, count):
                return f"{split} has {samples} samples of {manifest['classes']}, expected {count} of {classes}"
        strangers = {path.name for path in (folder / "out").iterdir() if path.is_dir()} - counts.keys()
        return f"there is {strangers}, too" if strangers else None

    return check


def case(name: str, make: Callable[[Path], None], *options: str, **expected: object) -> Case:
    """Write the shards of a tree."""

    def prepare(folder: Path) -> list[str]:
        make(folder / "in")
        return [*WRITE, *options]

    return Case(name=name, make=prepare, **expected)  # type: ignore[arg-type]


def tree(*folders: str, count: int = 2) -> list[str]:
    """Name a few images in each of the folders."""
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(count)]


TWO = tree("train/a", "train/b", "val/a", "val/b")
AB = ["a", "b"]
SPLIT_CHECK = written(AB, train=4, val=4)

CLASS_TREES = [
    case("junk_beside", files(*TWO, texts={"__MACOSX/train/a/._0.jpg": b"x"}), check=SPLIT_CHECK),
    case("text_beside", files(*TWO, texts={"meta/notes.txt": "x"}), says="passed over.*1 .txt", check=SPLIT_CHECK),
    case("picture_beside", files(*TWO, "docs/x.jpg"), says="docs is left alone", check=SPLIT_CHECK),
    case(
        "readme_and_csv_beside",
        files(*TWO, "preview.jpg", texts={"README.md": "x", "labels.csv": "x,y"}),
        says="passed over.*1 .csv.*1 .jpg.*1 .md",
        check=SPLIT_CHECK,
    ),
    case("Training_Testing", files(*tree("Training/a", "Training/b", "Testing/a", "Testing/b")), check=SPLIT_CHECK),
    case("train_valid_test", files(*TWO, *tree("test/a", "test/b")), says="test is left alone", check=SPLIT_CHECK),
    case("flat_test_beside", files(*TWO, *tree("test")), says="test is left alone", check=SPLIT_CHECK),
    case(
        "set_suffixes", files(*tree("training_set/a", "training_set/b", "test_set/a", "test_set/b")), check=SPLIT_CHECK
    ),
    case("wrapper", files(*[f"data/{name}" for name in TWO]), says="data: train is train", check=SPLIT_CHECK),
    case("two_wrappers", files(*[f"archive/data/{name}" for name in TWO]), check=SPLIT_CHECK),
    case(
        "wrapped_splits",
        files(*tree("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a", "seg_test/seg_test/b")),
        check=SPLIT_CHECK,
    ),
    case(
        "one_more_split",
        files(*TWO, *tree("extra/a", "extra/b")),
        code=1,
        says=r"3 classes \(--format folder --splits none\) or splits \(--format folder --splits train,val",
    ),
    case(
        "four_flat_splits",
        files(*tree("train", "val", "test", "extra")),
        code=1,
        says=r"4 classes \(--format folder --splits none\) or splits",
    ),
    case(
        "four_flat_chosen",
        files(*tree("train", "val", "extra")),
        "--splits",
        "train,val",
        check=written(None, train=2, val=2),
    ),
    case(
        "four_classes",
        files(*tree("train", "val", "x")),
        "--splits",
        "none",
        check=written(["train", "val", "x"], train=6),
    ),
    case(
        "no_train", files(*tree("val/a", "val/b", "test/a", "test/b")), code=1, says="no folder to train on.*--splits"
    ),
    case("class_called_train", files(*tree("train", "plane")), check=written(["plane", "train"], train=4)),
    case(
        "classes_that_sound_like_splits",
        files(*tree("bullet_train", "test_tube", "cat", "dog")),
        check=written(["bullet_train", "cat", "dog", "test_tube"], train=8),
    ),
    case(
        "a_class_with_parts",
        files(*tree("dog/in", "dog/out", "cat")),
        says="taken for parts of one class",
        check=written(["cat", "dog"], train=6),
    ),
    case("unlabeled_beside_train", files(*tree("train", "unlabeled")), code=1, says="2 classes .* or splits"),
    case("kitti", files(*tree("image_2", "semantic", "semantic_rgb")), code=1, says="do not sound like classes"),
    case(
        "nested_below_wrappers",
        files(*tree("A/images/x", "A/images/y", "B/images/x")),
        code=1,
        says=r"B/images/x; --class-depth 3\)",
    ),
    case("single_class", files(*tree("photos/cat")), says="no classes", check=written(None, train=2)),
    case(
        "empty_class",
        files(*tree("a", "c"), "b/"),
        says="no image.*keep their numbers: b",
        check=written(["a", "b", "c"], train=4),
    ),
    case(
        "empty_class_in_split",
        files(*tree("train/a", "train/c", "val/a", "val/b"), "train/b/"),
        check=written(["a", "b", "c"], train=4, val=4),
    ),
    case(
        "other_pictures",
        files("a/1.jpg", "a/2.jpg", "b/1.tif", "b/2.tif", "c/1.gif"),
        says="keep their numbers: b, c.*passed over.*1 .gif.*2 .tif",
        check=written(["a", "b", "c"], train=2),
    ),
    case(
        "mixed_pictures",
        files(*[f"{name}/{n}{suffix}" for name in "abc" for n, suffix in enumerate((".jpg", ".JPG", ".tif", ".gif"))]),
        says="passed over.*3 .gif.*3 .tif",
        check=written(["a", "b", "c"], train=6),
    ),
    case(
        "phone_pictures",
        files("a/1.jpg", "a/2.avif", "b/3.AVIF", texts={"b/4.heic": "no image"}),
        says=r"1 \.heic \(`pip install pillow-heif` reads HEIC\)|left out in/b/4.heic",
        check=written(AB, train=3),
    ),
    case("only_tif", files("a/1.tif", "b/2.tif"), code=1, says="no image in .*it holds 2 .tif"),
    case(
        "nested_classes",
        files(*tree("Fruit/Apple", "Fruit/Pear", "Root/Carrot")),
        code=1,
        says=r"2 \(Fruit, Root; --class-depth 1\) or 3 \(Fruit/Apple, Fruit/Pear, Root/Carrot; --class-depth 2\)",
    ),
    case(
        "nested_by_depth",
        files(*tree("Fruit/Apple", "Fruit/Pear", "Root/Carrot")),
        "--class-depth",
        "2",
        check=written(["Fruit/Apple", "Fruit/Pear", "Root/Carrot"], train=6),
    ),
    case("no_depth", files(*tree("2020/1", "2020/2", "2021/1")), "--class-depth", "0", check=written(None, train=6)),
    case(
        "nested_in_splits",
        files(*tree("train/F/A", "train/F/B", "train/G/C", "val/F/A", "val/G/C")),
        "--class-depth",
        "2",
        check=written(["F/A", "F/B", "G/C"], train=6, val=4),
    ),
    case("wrapper_beside_docs", files(*[f"data/{n}" for n in TWO], "docs/x.jpg"), code=1, says="--source in/data"),
    case(
        "val_only_class", files(*TWO, *tree("val/z")), code=1, says="classes to validate on that are not to train on: z"
    ),
    case("images_beside_classes", files(*tree("a", "b"), "x.jpg"), code=1, says="images of its own.*--class-depth 1"),
    case(
        "unicode_names",
        files(*tree("Äpfel", "さくら")),
        says="Äpfel.*さくら",
        check=written(["Äpfel", "さくら"], train=4),
    ),
    case(
        "tar_beside_classes",
        files(*tree("a", "b"), texts={"old.tar": b"x"}),
        code=1,
        says="--format folder.*--format webdataset",
    ),
]


def _from_here(*names: str) -> Callable[[Path], list[str]]:
    """Write the shards of the folder that the command runs in."""

    def make(folder: Path) -> list[str]:
        files(*names, maps="masks")(folder)
        return ["data/main.py", "write", "--source", ".", "--out", "out", "--processes", "1"]

    return make


MAPS = ["train/images/1.jpg", "train/masks/1.png", "val/images/2.jpg", "val/masks/2.png"]
PAIR_TREES = [
    case("maps_by_split", files(*MAPS, maps="masks"), says="--format labels", check=written(None, train=1, val=1)),
    case(
        "maps_of_chosen_splits",
        files(*MAPS, "test/images/3.jpg", "test/masks/3.png", "test/images/4.jpg", "test/masks/4.png", maps="masks"),
        *("--splits", "train,test"),
        check=written(None, train=1, val=2),
    ),
    case("maps_of_no_such_split", files(*MAPS, maps="masks"), "--splits", "a,b", code=1, says="--splits a,b must be"),
    case(
        "maps_that_splits_would_share",
        files("images/train/1.jpg", "images/val/1.jpg", "masks/1.png", maps="masks"),
        code=1,
        says="would both have the labels",
    ),
    case(
        "maps_that_images_would_share",
        files("images/a_l.jpg", "images/a_r.jpg", "masks/a_mask.png", maps="masks"),
        code=1,
        says="would both have the label map",
    ),
    Case(
        name="maps_from_here",
        make=_from_here(*MAPS),
        never_says="passed over.*jpg|passed over.*[12] .png|Traceback",
        check=written(None, train=1, val=1),
    ),
    case(
        "voc_maps",
        files(
            "JPEGImages/1.jpg",
            "JPEGImages/2.jpg",
            "SegmentationClass/1.png",
            "SegmentationClass/2.png",
            maps="SegmentationClass",
        ),
        says="--format labels",
        check=written(None, train=2),
    ),
    case(
        "voc_maps_listed",
        files(
            *("VOC/JPEGImages/1.jpg", "VOC/JPEGImages/2.jpg", "VOC/JPEGImages/3.jpg"),
            *("VOC/SegmentationClass/1.png", "VOC/SegmentationClass/2.png"),
            maps="SegmentationClass",
            texts={"VOC/ImageSets/Segmentation/train.txt": "1\n", "VOC/ImageSets/Segmentation/val.txt": "2\n"},
        ),
        check=written(None, train=1, val=1),
    ),
    case(
        "camvid_kaggle",
        files("train/1.png", "train_labels/1.png", "val/2.png", "val_labels/2.png", maps="_labels"),
        says="--format labels",
    ),
    case(
        "jpeg_maps",
        files("images/1.jpg", "annotations/1.jpg"),
        code=1,
        says=r"label maps in .* are \.jpg, expected \.png",
    ),
    case(
        "images_and_masks_apart",
        files("images/1.jpg", "masks/1.png", "labels/1.png"),
        code=1,
        says="several folders of labels",
    ),
]

CASES: list[Case] = [*CLASS_TREES, *PAIR_TREES]
