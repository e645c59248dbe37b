"""ImageNet-1k and 21k as they are handed out, unpacked or not.

    SOURCE/train/n01440764/*.JPEG     and val/ of class folders, or flat with a list of labels:
    SOURCE/val/*.JPEG                 Kaggle's LOC_val_solution.csv, or lines `ILSVRC2012_val_00000001.JPEG n01751748`
                                      (or the class number)
    SOURCE/n01440764.tar ...          one tar a class, as 21k comes: read in place, nothing is unpacked

Class numbers are ranks of the wnids in sorted order, which is what timm and torchvision use.
"""

import csv
import dataclasses
import logging
from pathlib import Path

from data.parallel import in_order
from data.shards.class_names import is_wnid, read_class_names
from data.shards.manifest import Manifest, ShardInfo, write_manifest
from data.shards.scan import describe_shard, scan_tar
from data.shards.shard_set import open_shards
from data.sources.config import Write
from data.sources.formats import SourceFormat
from data.sources.image_folder import ImageFiles, find_split, same_classes
from data.sources.reshard import StoredSamples, stored_samples
from data.sources.source import Source
from data.sources.trees.listing import images_of, subfolders
from data.sources.trees.names import Split, split_of
from engine.documents import read_text
from engine.errors import UserError

logger = logging.getLogger(__name__)

KAGGLE_LIST = "LOC_val_solution.csv"
LEVELS_ABOVE = 4  # the folder that holds it also holds ILSVRC/Data/CLS-LOC/val
LABEL_LISTS = (KAGGLE_LIST, "val_labels.csv", "val_labels.txt", "val.txt", "val_annotations.txt")


def is_imagenet(folder: Path) -> bool:
    """Whether a folder looks like ImageNet: wnid folders below train, or a tar for each wnid."""
    train = _first_of("train", folder=folder)
    return bool(class_tars(folder)) or (train is not None and any(is_wnid(path.name) for path in subfolders(train)))


def find_imagenet(options: Write, index_folder: Path) -> dict[str, Source]:
    """Find the samples by split; ``options.classes`` lists the wnids where training lacks some.

    Raises:
        UserError: no such layout, a flat val without its labels, or classes that are not in that list.
    """
    folder, preparation = Path(options.source), options.preparation
    classes = None if options.classes is None else tuple(sorted(read_class_names(options.classes)))
    if tars := class_tars(folder):
        return {"train": _from_tars(tars, classes=classes, options=options, index_folder=index_folder)}
    train_folder, val_folder = (_first_of(split, folder=folder) for split in ("train", "val"))
    if train_folder is None:
        raise UserError(f"expected train/ with a folder for each wnid, or a tar for each, in {folder}")
    train = find_split(train_folder, preparation=preparation, labelled=True)
    if train.classes is None:
        raise UserError(f"{train_folder} has no class folders; for images without labels use --format folder")
    if classes is not None:
        train = same_classes(train, train=dataclasses.replace(train, classes=classes), folder=train_folder)
    if val_folder is None:
        return {"train": train}
    return {"train": train, "val": _val(val_folder, train=train, val_labels=options.val_labels)}


def class_tars(folder: Path) -> list[Path]:
    """List the tars of a folder that are named for a wnid each, sorted."""
    return sorted(path for path in folder.glob("n*.tar") if is_wnid(path.stem))


def _first_of(split: Split, *, folder: Path) -> Path | None:
    """Choose the first folder of a split; ImageNet's test images have no labels and are left alone."""
    return next((path for path in subfolders(folder) if split_of(path.name) == split), None)


def _val(folder: Path, *, train: ImageFiles, val_labels: Path | None) -> ImageFiles:
    if val_labels is None and any(is_wnid(path.name) for path in subfolders(folder)):
        return same_classes(
            find_split(folder, preparation=train.preparation, labelled=True), train=train, folder=folder.parent
        )
    path = val_labels or _labels_near(folder)
    labels = _read_labels(path, classes=train.classes or ())
    paths = images_of(folder, deep=True)
    missing = [name for name in paths if Path(name).stem not in labels]
    if missing or not paths:
        raise UserError(
            f"{path} names no class for {len(missing)} of the {len(paths)} images in {folder}: {missing[:3]}"
        )
    numbers = tuple(labels[Path(name).stem] for name in paths)
    return dataclasses.replace(train, paths=tuple(paths), labels=numbers)


def _labels_near(folder: Path) -> Path:
    places = [place / name for place in (folder, folder.parent) for name in LABEL_LISTS]
    places += [place / KAGGLE_LIST for place in folder.resolve().parents[:LEVELS_ABOVE]]
    labels = next((path for path in places if path.is_file()), None)
    if labels is None:
        raise UserError(
            f"{folder} is flat, and none of {', '.join(LABEL_LISTS)} lies near it: give the labels with "
            "--val-labels FILE, with lines `name.JPEG wnid` (Kaggle: LOC_val_solution.csv), or sort the images into "
            "wnid folders"
        )
    return labels


def _read_labels(path: Path, *, classes: tuple[str, ...]) -> dict[str, int]:
    """Read class numbers by image name without its ending."""
    numbers = {name: number for number, name in enumerate(classes)}
    numbers |= {str(number): number for number in range(len(classes))}
    labels: dict[str, int] = {}
    lines = read_text(path).replace("\t", ",").replace(" ", ",").splitlines()
    for place, row in enumerate(csv.reader(lines)):
        fields = [field for field in row if field]
        if (place == 0 and fields and fields[0] == "ImageId") or not fields:
            continue
        if len(fields) < 2 or fields[1] not in numbers:
            raise UserError(
                f"line {place + 1} of {path} is {' '.join(fields)[:80]!r}: expected an image's name and its wnid "
                f"(one of the {len(classes)} in training) or class number; the devkit's "
                "ILSVRC2012_validation_ground_truth.txt has numbers of its own and no names"
            )
        labels[fields[0].split(".")[0]] = numbers[fields[1]]
    return labels


def _from_tars(
    tars: list[Path], *, classes: tuple[str, ...] | None, options: Write, index_folder: Path
) -> StoredSamples:
    """Index each class's tar with the class as label, and read the samples from there."""
    classes = classes or tuple(tar.stem for tar in tars)
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = sorted({tar.stem for tar in tars} - set(classes))
    if unknown:
        raise UserError(
            f"{len(unknown)} tars are of classes that are not in the list of classes: {', '.join(unknown[:3])}"
        )
    labelled = ((tar, numbers[tar.stem]) for tar in tars)
    shards = tuple(in_order(_index_class, labelled, state=index_folder, processes=options.processes))
    write_manifest(index_folder, Manifest(shards=shards, classes=classes))
    return stored_samples(open_shards(index_folder), preparation=options.preparation, keep_names=False)


def _index_class(index_folder: Path, labelled: tuple[Path, int]) -> ShardInfo:
    tar, label = labelled
    scan = scan_tar(tar)
    for reason, count in scan.ignored.most_common(3):
        logger.warning("%s: passed over %d x %s", tar.name, count, reason)
    entries = [dataclasses.replace(entry, label=label) for entry in scan.entries]
    return describe_shard(tar, out=index_folder, entries=entries, index_name=f"{tar.stem}.idx", digest=False)


FORMAT = SourceFormat(
    open=find_imagenet,
    says="ImageNet",
    narrows=("folder", "webdataset"),
    recognise=lambda source: source.is_dir() and is_imagenet(source),
    options=("val_labels", "classes"),
)
