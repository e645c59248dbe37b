"""Indexes tars that anyone may have written: which samples they hold and where, as WebDataset groups them.

Reading them is bounded (data/shards/tar_members.py), and nothing is extracted, unpickled or decoded.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from data.parallel import in_order
from data.shards.index import EXTENSIONS, IMAGE_EXTENSIONS, MAX_KEY_BYTES, Member, SampleEntry, index_bytes
from data.shards.labels import MAX_JSON_BYTES, MAX_LABEL_BYTES, json_label, text_label
from data.shards.manifest import Manifest, ShardInfo, file_sha256, write_manifest
from data.shards.tar_members import TarMember, read_at, tar_members
from engine.errors import UserError
from engine.run.durable import write_durably

logger = logging.getLogger(__name__)


MAX_NAMES = 100_000
"""More different texts as labels are captions, not classes."""
IMAGE_WORDS = ("image", "img", "rgb", "input", "photo")
MAX_FOLDERS = 1000
"""Most folders that may be meant as classes."""
MAX_REASONS = 1000
"""Kinds of members that are told apart in what is passed over."""


@dataclass(kw_only=True)
class Scan:
    """What a tar holds."""

    entries: list[SampleEntry] = field(default_factory=list[SampleEntry])
    """Its samples, in order."""
    ignored: Counter[str] = field(default_factory=Counter[str])
    """What was passed over, by reason."""
    names: set[str] = field(default_factory=set[str])
    """Class names among the labels that have no number yet."""
    folders: set[str] = field(default_factory=set[str])
    """Folders in which the samples lie, as far as they are few."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How labels are read."""

    first_class: int = 0
    """The number of the first class."""
    numbers: Mapping[str, int] = field(default_factory=dict[str, int])
    """Class numbers, from 0, by name."""


def index_shards(
    tars: Sequence[Path],
    *,
    out: Path,
    classes: Sequence[str] | None = None,
    first_class: int | None = None,
    digests: bool = True,
    processes: int = 1,
) -> tuple[Manifest, Counter[str]]:
    """Write a manifest and index files into ``out`` for ``tars``, which stay as they are.

    Labels are class numbers, or names: those of ``classes``, without which the names found are numbered in their sorted
    order. Without ``digests`` the tars' bytes are not read through, and the manifest serves only this once. Gives the
    manifest and what was passed over in the tars, by reason.

    Raises:
        UserError: tars that cannot be read (all are named), no image in them, or labels that are not of ``classes``.
    """
    with _kept_if_done(out):
        manifest, ignored = _indexed(
            tars, out=out, classes=classes, first_class=first_class, digests=digests, processes=processes
        )
        write_manifest(out, manifest)
    return manifest, ignored


@contextlib.contextmanager
def _kept_if_done(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again where what should lie in it is refused."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _check_writable(folder)
    try:
        yield
    except UserError:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _indexed(
    tars: Sequence[Path],
    *,
    out: Path,
    classes: Sequence[str] | None,
    first_class: int | None,
    digests: bool,
    processes: int,
) -> tuple[Manifest, Counter[str]]:
    """Write the index files, a second time where the names among the labels are known only then."""
    numbers = {name: number for number, name in enumerate(classes or ())}
    reading = Reading(first_class=first_class or 0, numbers=numbers)
    indexed = _index(tars, out=out, reading=reading, digests=digests, processes=processes)
    names = set[str]().union(*(tar.names for tar in indexed))
    if names:
        classes = _named_classes(names, indexed, given=classes)
        reading = replace(reading, numbers={name: number for number, name in enumerate(classes or ())})
        indexed = _index(tars, out=out, reading=reading, digests=digests, processes=processes)
    ignored = sum((tar.ignored for tar in indexed), Counter[str]())
    if not any(tar.info.num_samples for tar in indexed):
        extensions = ", ".join(f"{reason} ({count})" for reason, count in ignored.most_common(5)) or "nothing"
        raise UserError(
            f"no sample with an image ({', '.join(IMAGE_EXTENSIONS)}) in {_named(tars)}, which hold {extensions}; an "
            "extension is what follows the first dot of a name, as in WebDataset: names must have no other dot"
        )
    names_of_classes = _class_names(classes, indexed, asked_first=first_class)
    return Manifest(shards=tuple(tar.info for tar in indexed), classes=names_of_classes), ignored


def _index(tars: Sequence[Path], *, out: Path, reading: Reading, digests: bool, processes: int) -> "list[_IndexedTar]":
    results = in_order(_index_tar, enumerate(tars), state=(out, digests, reading), processes=processes)
    indexed: list[_IndexedTar] = []
    for tar, result in zip(tars, results, strict=True):
        logger.info("%s: %s", tar.name, result.problem or f"{result.info.num_samples} samples")
        indexed.append(result)
    _refuse_broken(indexed)
    return indexed


def _named(tars: Sequence[Path]) -> str:
    return str(tars[0]) if len(tars) == 1 else f"{tars[0]} and {len(tars) - 1} more"


@dataclass(frozen=True, kw_only=True)
class _IndexedTar:
    """What became of one tar."""

    info: ShardInfo
    ignored: Counter[str] = field(default_factory=Counter[str])
    labels: range = range(0)
    """From the lowest to the highest class number."""
    names: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    problem: str | None = None


def _index_tar(state: tuple[Path, bool, Reading], numbered: tuple[int, Path]) -> _IndexedTar:
    (out, digests, reading), (number, tar) = state, numbered
    try:
        scan = scan_tar(tar, reading=reading)
    except UserError as error:
        empty = ShardInfo(name=tar.name, num_samples=0, size_bytes=0, sha256="", index="", index_sha256="")
        return _IndexedTar(info=empty, problem=str(error))
    index_name = f"{number:06d}-{tar.stem}.idx"
    info = describe_shard(tar, out=out, entries=scan.entries, index_name=index_name, digest=digests)
    labels = [entry.label for entry in scan.entries if entry.label is not None]
    numbers = range(min(labels), max(labels) + 1) if labels else range(0)
    return _IndexedTar(
        info=info, ignored=scan.ignored, labels=numbers, names=frozenset(scan.names), folders=frozenset(scan.folders)
    )


def _refuse_broken(tars: Sequence[_IndexedTar]) -> None:
    problems = [tar.problem for tar in tars if tar.problem]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(
            f"{len(problems)} of {len(tars)} tars cannot be read; repair them or move them away: "
            f"{'; '.join(problems[:5])}"
        )


def describe_shard(
    tar: Path, *, out: Path, entries: Sequence[SampleEntry], index_name: str, digest: bool = True
) -> ShardInfo:
    """Write the index of one tar into ``out``, and make the manifest's line."""
    content = index_bytes(entries)
    write_durably(out / index_name, content)
    inside = tar.resolve().is_relative_to(out.resolve())
    return ShardInfo(
        name=str(tar.resolve().relative_to(out.resolve()) if inside else tar.resolve()),
        num_samples=len(entries),
        size_bytes=tar.stat().st_size,
        sha256=file_sha256(tar) if digest else "",
        index=index_name,
        index_sha256=hashlib.sha256(content).hexdigest(),
    )


def _check_writable(folder: Path) -> None:
    """Refuse a folder that is marked read-only, also where we run as root, whom the system lets write anyway."""
    if not folder.stat().st_mode & 0o222 or not os.access(folder, os.W_OK):
        raise UserError(f"{folder} is read-only; write manifest and index into another folder with --out")


def scan_tar(path: Path, *, reading: Reading | None = None) -> Scan:
    """List the samples of one tar.

    Raises:
        UserError: it is no tar, or it ends too early.
    """
    scan, reading = Scan(), reading or Reading()
    with path.open("rb") as file:
        try:
            for key, members in _group(tar_members(file, ignored=scan.ignored), ignored=scan.ignored):
                _add_sample(scan, file=file, key=key, members=members, reading=reading)
        except UserError as error:
            raise UserError(f"{path} is no readable tar shard: {error}") from error
    return scan


def _group(members: Iterator[TarMember], *, ignored: Counter[str]) -> Iterable[tuple[str, dict[str, TarMember]]]:
    """Gather the members whose names differ only behind the first dot of the file name, as WebDataset does.

    Unlike there, they need not be neighbours: tars are also written as all images and then all labels. A sample begins
    anew where its extension comes again, or neighbours with an image of their own; and with each of several joined
    tars, but for one that holds no images.
    """
    samples: list[tuple[str, dict[str, TarMember]]] = []
    places: dict[str, int] = {}
    for _, part in itertools.groupby(members, key=lambda member: member.part):
        runs = list(_neighbours(part, ignored=ignored))
        if any(_has_image(run) for _, run in runs):
            places.clear()
        for key, run in runs:
            earlier = samples[places[key]][1] if key in places else None
            if earlier is None or earlier.keys() & run.keys() or (_has_image(earlier) and _has_image(run)):
                places[key] = len(samples)
                samples.append((key, run))
            else:
                earlier.update(run)
    return samples


def _neighbours(members: Iterable[TarMember], *, ignored: Counter[str]) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """Gather the members of one key that follow each other, by extension."""
    named = ((_key_and_extension(member.name, ignored=ignored), member) for member in members)
    for key, block in itertools.groupby(named, key=lambda each: each[0][0]):
        if not key:
            continue
        extensions = [(extension, member) for (_, extension), member in block]
        counts = Counter(extension for extension, _ in extensions)
        images = sum(counts[extension] for extension in IMAGE_EXTENSIONS)
        run: dict[str, TarMember] = {}
        is_lead = images > 0  # what is before the first image, which is of an earlier one where there is enough of it
        for extension, member in extensions:
            starts_image = is_lead and extension in IMAGE_EXTENSIONS
            if extension in run or (starts_image and any(counts[lead] > images for lead in run)):
                yield key, run
                run = {}
            is_lead = is_lead and not starts_image
            run[extension] = member
        yield key, run


def _key_and_extension(name: str, *, ignored: Counter[str]) -> tuple[str, str]:
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot:
        ignored["names without an extension"] += 1
        return "", ""
    return folder + slash + stem, _plain(extension.lower())


def _has_image(members: Mapping[str, TarMember]) -> bool:
    return any(extension in members for extension in IMAGE_EXTENSIONS)


def _plain(extension: str) -> str:
    """Take `image.jpg` for `jpg`, as many samples name their one image beside other members."""
    word, _, last = extension.partition(".")
    return last if word in IMAGE_WORDS and last in IMAGE_EXTENSIONS else extension


def _add_sample(scan: Scan, *, file: BinaryIO, key: str, members: dict[str, TarMember], reading: Reading) -> None:
    image = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
    for extension in members:
        if extension not in EXTENSIONS:
            reason = f".{extension}"
            known = reason in scan.ignored or len(scan.ignored) < MAX_REASONS
            scan.ignored[reason if known else "members of other kinds"] += 1
    if image is None:
        scan.ignored["samples without an image"] += 1
        return
    if sum(extension in members for extension in IMAGE_EXTENSIONS) > 1:
        scan.ignored["second images of a sample, read by nothing: label maps are called .seg.png"] += 1
    if len(scan.folders) <= MAX_FOLDERS:
        scan.folders.add(key.rpartition("/")[0])
    others = [extension for extension in members if extension in EXTENSIONS and extension not in (image, "cls")]
    label = _label(file, members=members, reading=reading, ignored=scan.ignored)
    if isinstance(label, str):
        if label not in reading.numbers and len(scan.names) <= MAX_NAMES:
            scan.names.add(label)
        label = reading.numbers.get(label)
    scan.entries.append(
        SampleEntry(
            key=key.encode()[:MAX_KEY_BYTES].decode(errors="ignore"),
            image=_entry(image, member=members[image]),
            label=label,
            members=tuple(_entry(extension, member=members[extension]) for extension in others),
        )
    )


def _entry(extension: str, *, member: TarMember) -> Member:
    return Member(extension=extension, offset=member.offset, size=member.size)


def _label(
    file: BinaryIO, *, members: Mapping[str, TarMember], reading: Reading, ignored: Counter[str]
) -> int | str | None:
    first = reading.first_class
    if (member := members.get("cls")) is not None:
        content = read_at(file, offset=member.offset, size=member.size) if member.size <= MAX_LABEL_BYTES else b""
        return text_label(content, first=first, ignored=ignored)
    if (member := members.get("json")) is not None and member.size <= MAX_JSON_BYTES:
        return json_label(read_at(file, offset=member.offset, size=member.size), first=first, ignored=ignored)
    return None


def _named_classes(
    names: set[str], tars: Sequence[_IndexedTar], *, given: Sequence[str] | None
) -> Sequence[str] | None:
    """Tell the classes that labels name which are not among those ``given``.

    Raises:
        UserError: they should be among those, or other labels are numbers.
    """
    shown = ", ".join(repr(name) for name in sorted(names)[:3])
    if given is not None:
        raise UserError(f"{len(names)} labels are not among the {len(given)} class names given, such as {shown}")
    numbered = next((tar.labels for tar in tars if tar.labels), None)
    if numbered is not None:
        raise UserError(
            f"some labels are numbers, such as {numbered.start}, and some are names, such as {shown}: give the class "
            "names in the order of their numbers with --classes"
        )
    if len(names) > MAX_NAMES:
        logger.warning("labels are of more than %d kinds (%s): taken for captions, not for classes", MAX_NAMES, shown)
        return None
    logger.info("labels are class names: %d of them, numbered in their sorted order", len(names))
    return sorted(names)


def _class_names(
    classes: Sequence[str] | None, tars: Sequence[_IndexedTar], *, asked_first: int | None
) -> tuple[str, ...] | None:
    labels = [tar.labels for tar in tars if tar.labels]
    if not labels:
        folders = sorted(set[str]().union(*(tar.folders for tar in tars)))
        if 1 < len(folders) <= MAX_FOLDERS:
            logger.warning(
                "samples have no labels and lie in %d folders (%s, ...), which in a tar are part of their names: if "
                "these are classes, unpack the tars and write the folder",
                len(folders),
                ", ".join(folders[:3]),
            )
        return None
    lowest, highest = min(each.start for each in labels), max(each.stop for each in labels) - 1
    from_one = lowest == 1 and asked_first is None
    if classes is None:
        if from_one:
            logger.warning("no sample has class 0, the lowest is 1: if they count from 1, say --first-class 1")
        return tuple(str(number + (asked_first or 0)) for number in range(highest + 1))
    if highest >= len(classes):
        remedy = "; if they count from 1, say --first-class 1" if from_one and highest == len(classes) else ""
        raise UserError(
            f"the shards hold class number {highest}, but only {len(classes)} class names were given{remedy}"
        )
    return tuple(classes)
