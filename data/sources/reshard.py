"""Samples of shards that exist already: other sizes, another order, a held-out share; members and labels are kept."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.images.decode import BadImage
from data.shards.class_names import find_class_names, read_class_names
from data.shards.index import UNLABELLED, SampleEntry
from data.shards.manifest import MANIFEST_NAME
from data.shards.scan import index_shards
from data.shards.shard_set import ShardSet, open_shards
from data.shards.tar_files import COMPRESSED, TarGroup, find_tars_by_split, folders_in, split_in_name
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat
from data.sources.preparation import MAX_FILE_BYTES, prepare_image
from data.writing.journal import Rejected
from data.writing.writer import NewSample
from engine.errors import UserError

logger = logging.getLogger(__name__)

MAX_KEY_BYTES = 80  # with its extension a name must fit into a USTAR header
MAPS = ("seg.png", "depth.png", "boxes.json")
PLACES = (b'"bbox"', b'"boxes"', b'"segmentation"', b'"keypoints"')  # in a .json: what has its place in pixels


@dataclass(frozen=True, kw_only=True)
class StoredSamples:
    """The samples of a data set's shards."""

    shards: ShardSet
    """Where they lie."""
    labels: tuple[int, ...] | None
    """Class numbers, -1 for none."""
    keep_keys: bool
    """Keep their keys; otherwise they are numbered."""
    keep_names: bool
    """Keep the images' extensions; otherwise they are named for what they hold."""
    preparation: Preparation
    """What is done to each image."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by number."""
        return self.shards.classes

    def __len__(self) -> int:
        """Count the samples."""
        return self.shards.num_samples

    def prepare(self, number: int) -> NewSample | Rejected:
        """Read one sample with all its members."""
        shard, position = self.shards.place_of(number)
        entry = self.shards.entries(shard)[position]
        source = f"{self.shards.manifest.shards[shard].name}!{entry.key}"
        try:
            members = self._members(shard, position=position, entry=entry)
        except BadImage as error:
            return Rejected(source=source, reason=str(error))
        return NewSample(source=source, members=members, label=entry.label, key=entry.key if self.keep_keys else None)

    def listing(self) -> Iterator[str]:
        """Yield a line for each shard."""
        for info in self.shards.manifest.shards:
            yield f"{info.name} {info.num_samples} {info.size_bytes} {info.index_sha256}"

    def _members(self, shard: int, *, position: int, entry: SampleEntry) -> dict[str, bytes]:
        if max(member.size for member in (entry.image, *entry.members)) > MAX_FILE_BYTES:
            raise BadImage(f"it holds more than the {MAX_FILE_BYTES} bytes that are read")
        extensions = [member.extension for member in entry.members]
        sample = self.shards.read_many([(shard, position, 0)], extensions=extensions)[0]
        image = prepare_image(sample.image, preparation=self.preparation)
        extension = entry.image.extension if self.keep_names and image.is_as_it_was else image.extension
        if self.preparation.resize is not None:
            _refuse_places(sample.members, key=entry.key)
        return {extension: image.content, **sample.members}


def find_shards(options: Write, index_folder: Path) -> dict[str, StoredSamples]:
    """Open the samples of a folder with a manifest, or with tars, which are then indexed in ``index_folder``.

    A folder that holds both training and held-out samples gives both splits.

    Raises:
        UserError: no tars, broken ones, or some of which it is not clear what they are.
    """
    folder = Path(options.source)
    if (folder / MANIFEST_NAME).is_file():
        return {"train": stored_samples(open_shards(folder), preparation=options.preparation)}
    written = _written_splits(folder)
    if written:
        chosen = _chosen_splits({split: f"--source {path}" for split, path in written.items()}, source=options.source)
        return {
            name: stored_samples(open_shards(written[split]), preparation=options.preparation)
            for name, split in chosen.items()
        }
    found = find_tars_by_split(folder, pattern=options.pattern)
    chosen = _chosen_splits({split: group.choice for split, group in found.items()}, source=options.source)
    groups = {name: found[split] for name, split in chosen.items()}
    names = options.classes or find_class_names(folder) or find_class_names(next(iter(groups.values())).tars[0].parent)
    classes = None if names is None else tuple(read_class_names(names))
    splits: dict[str, StoredSamples] = {}
    for split, group in groups.items():  # train first: its classes are those of val
        shards = _indexed(group, classes=classes, options=options, index_folder=index_folder / split)
        classes = classes or shards.classes
        splits[split] = stored_samples(shards, preparation=options.preparation)
    return splits


def _written_splits(folder: Path) -> dict[str, Path]:
    """Find the folders with manifests that `write` makes of a source with splits.

    Raises:
        UserError: two of them are of one split.
    """
    written: dict[str, Path] = {}
    others: list[Path] = []
    for path in _split_folders(folder):
        if (path / MANIFEST_NAME).is_file():
            split = str(split_in_name(path.name))
            if written.setdefault(split, path) != path:
                raise UserError(
                    f"{folder} has shards of {split} in {written[split].name} and {path.name}: choose one with "
                    f"--source {written[split]}, --source {path}"
                )
        elif _holds_tars(path):
            others.append(path)
    for path in others if written else ():
        logger.warning("the tars in %s, which has no manifest, are left alone: --source %s", path, path)
    return written


def _split_folders(folder: Path) -> list[Path]:
    return [path for path in folders_in(folder) if split_in_name(path.name) is not None] if folder.is_dir() else []


def _chosen_splits(choices: Mapping[str, str], *, source: str) -> dict[str, str]:
    """Choose the splits to train on and to hold out; tests are for neither where there is something else.

    ``choices`` are the options that choose each split alone.
    """
    if len(choices) == 1:
        return {"train": next(iter(choices))}
    held_out = "val" if "val" in choices else "test"
    if "train" not in choices:
        options = ", ".join(choices.values())
        raise UserError(f"{source} holds shards of {' and '.join(choices)}, and none to train on: choose {options}")
    for split in sorted(choices.keys() - {"train", held_out}):
        logger.warning("the shards of %s are left alone: %s", split, choices[split])
    return {"train": "train", "val": held_out}


def _indexed(group: TarGroup, *, classes: tuple[str, ...] | None, options: Write, index_folder: Path) -> ShardSet:
    _, ignored = index_shards(
        group.tars,
        out=index_folder,
        classes=classes,
        first_class=options.first_class,
        digests=False,
        processes=options.processes,
    )
    for reason, count in ignored.most_common(10):
        logger.warning("left behind: %d x %s", count, reason)
    return open_shards(index_folder)


def stored_samples(shards: ShardSet, *, preparation: Preparation, keep_names: bool = True) -> StoredSamples:
    """Take all samples of ``shards``; with ``keep_names`` they keep their keys, if all are plain and unique."""
    if not shards.num_samples:
        raise UserError(f"no sample in the shards of {shards.folder}")
    labels = shards.labels()
    keep_keys = keep_names and _keys_can_stay(shards)
    if keep_names and not keep_keys:
        logger.info("samples are numbered anew: some keys are used twice, or cannot stand in every tar")
    samples = StoredSamples(
        shards=shards,
        labels=tuple(labels.tolist()) if (labels != UNLABELLED).any() else None,
        keep_keys=keep_keys,
        keep_names=keep_names,
        preparation=preparation,
    )
    if preparation.resize is not None:
        samples.prepare(0)  # where resizing is refused, it is at once
    return samples


def _refuse_places(members: Mapping[str, bytes], *, key: str) -> None:
    placed = [name for name in members if name in MAPS]
    if any(word in members.get("json", b"") for word in PLACES):
        placed.append("json")
    if placed:
        raise UserError(
            f"--size cannot be used here: sample {key} has a .{placed[0]} with places in pixels, which would no longer "
            "fit; leave --size out and resize when training"
        )


def _keys_can_stay(shards: ShardSet) -> bool:
    seen: set[int] = set()
    for number in range(len(shards.sizes)):
        index = shards.entries(number)
        for position in range(len(index)):
            key = index[position].key
            if hash(key) in seen or not is_plain_key(key):
                return False
            seen.add(hash(key))
    return True


def is_plain_key(key: str) -> bool:
    """Whether a key can be written as it is: short, printable ASCII, no step out of a folder, no dot in the name."""
    parts = key.split("/")
    plain = key.isascii() and key.isprintable() and "\\" not in key and len(key) <= MAX_KEY_BYTES
    return plain and all(part not in ("", ".", "..") for part in parts) and "." not in parts[-1]


def _is_shards(source: Path) -> bool:
    if not source.is_dir():
        return source.name.endswith((".tar", *COMPRESSED))
    folders = (source, *_split_folders(source))
    return any((folder / MANIFEST_NAME).is_file() or _holds_tars(folder) for folder in folders)


def _holds_tars(folder: Path) -> bool:
    return any(next(folder.glob(f"*{suffix}"), None) is not None for suffix in (".tar", *COMPRESSED))


FORMAT = SourceFormat(
    open=find_shards,
    says="shards",
    recognise=_is_shards,
    options=("pattern", "classes", "first_class"),
    narrows=(),
)
