"""The manifest: which shards make up a data set.

    folder/
      manifest.json         one line per shard, then nothing else is needed to plan an epoch
      shard-000000.tar      WebDataset members: 000000.jpg, 000000.cls, ...
      shard-000000.idx      where each member lies in the tar (data/shards/index.py)
      bad.jsonl             ledger of the files that were left out, if any

A shard's ``name`` is a path relative to the folder, or an absolute path or a URL where the tars were written by someone
else and stay where they are.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.remote.config import CacheConfig
from data.remote.download import download_bytes
from data.remote.locations import check_location, is_remote, join
from data.shards.class_names import MAX_CLASSES
from engine.documents import from_tree, member, parse_json
from engine.errors import UserError
from engine.run.durable import write_durably

MANIFEST_NAME = "manifest.json"
FORMAT = 1
MAX_SAMPLES, MAX_SIZE_BYTES = 2**24, 2**40  # of one shard; as many shards as a manifest can name stay below 2**63
MAX_MANIFEST_BYTES = 2**28  # of 700,000 shards
LEAST_BYTES_PER_VALUE = 20  # a shard's line takes 40 for each of its values


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar file of samples."""

    name: str
    """Path of the tar, relative to the manifest's folder or absolute, or its URL."""
    num_samples: int
    """Samples in it."""
    size_bytes: int
    """Size of the tar."""
    sha256: str
    """Digest of the tar."""
    index: str
    """Path of the index file, relative to the manifest's folder."""
    index_sha256: str
    """Digest of the index file."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The shards of a data set, in the order that global sample numbers count them."""

    shards: tuple[ShardInfo, ...]
    """The tars."""
    classes: tuple[str, ...] | None = None
    """Class names by label, or None for unlabelled images."""

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the content: the same wherever the tars lie and whatever they are called."""
        content = [
            self.classes,
            [[shard.num_samples, shard.size_bytes, shard.sha256, shard.index_sha256] for shard in self.shards],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_manifest(folder: Path | str, *, cache: CacheConfig | None = None) -> Manifest:
    """Read the manifest of ``folder``, a local path or a URL; ``cache`` says how long to wait for the network.

    Raises:
        OSError: it could not be fetched in time.
        UserError: the folder or its manifest is missing or malformed; the message says what to run.
    """
    path = join(check_location(folder), MANIFEST_NAME)
    content = download_bytes(path, config=cache or CacheConfig()) if is_remote(path) else _read_local(Path(folder))
    try:
        _check_content(content)
        return _parse(parse_json(content))
    except UserError as error:
        raise UserError(f"{path} is no manifest of this program ({error}); make it again with `index`") from None


def _read_local(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise UserError(f"expected a folder with {MANIFEST_NAME}, but {folder} is no folder")
    if not path.is_file():
        raise UserError(
            f"{folder} has no {MANIFEST_NAME}; write shards with `python data/main.py write --source IMAGES --out "
            f"{folder}`, or index those of others with `python data/main.py index --source TARS --out {folder}`"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes, a manifest has at most {MAX_MANIFEST_BYTES}")
    return path.read_bytes()


def merge_manifests(folders: Sequence[Path | str], manifests: Sequence[Manifest], *, labelled: bool = True) -> Manifest:
    """Join manifests into one of all shards, one folder's after the other's, named by URLs and absolute paths.

    Where labels are not read (``labelled`` is false), folders of different classes become one without classes.

    Raises:
        UserError: two manifests name different classes.
    """
    named = [
        (folder, manifest.classes) for folder, manifest in zip(folders, manifests, strict=True) if manifest.classes
    ]
    differing = next(((folder, classes) for folder, classes in named[1:] if classes != named[0][1]), None)
    if differing is not None and labelled:
        folder, classes = differing
        raise UserError(
            f"the {len(classes or ())} classes of {folder} are not the {len(named[0][1] or ())} of {named[0][0]}; "
            "folders that are read together for their labels must have the same classes"
        )
    shards = [
        dataclasses.replace(shard, name=_whole(folder, shard.name), index=_whole(folder, shard.index))
        for folder, manifest in zip(folders, manifests, strict=True)
        for shard in manifest.shards
    ]
    return Manifest(shards=tuple(shards), classes=named[0][1] if named and differing is None else None)


def _whole(folder: Path | str, name: str) -> str:
    """Name a file of one folder's manifest so that it means the same from any other folder."""
    location = join(folder, name)
    return location if is_remote(location) else str(Path(location).absolute())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest`` into its folder, with a line for each shard; a manifest is always complete."""
    lines = ",\n".join(f"  {json.dumps(dataclasses.asdict(shard))}" for shard in manifest.shards)
    classes = json.dumps(manifest.classes, ensure_ascii=False)
    text = f'{{"format": {FORMAT},\n "classes": {classes},\n "shards": [\n{lines}\n]}}\n'
    write_durably(folder / MANIFEST_NAME, text.encode())


def file_sha256(path: Path) -> str:
    """Digest a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_content(content: bytes) -> None:
    """Refuse what takes many times its own size of memory once it is parsed: values of a few bytes each."""
    num_values = sum(content.count(sign) for sign in (b",", b"[", b"{"))
    if num_values > MAX_CLASSES + len(content) // LEAST_BYTES_PER_VALUE:
        raise UserError(f"it holds {num_values} values in {len(content)} bytes")


def _parse(tree: Any) -> Manifest:
    if (version := member(tree, "format", int)) != FORMAT:
        raise UserError(f"format {version}, expected {FORMAT}")
    shards = tuple(from_tree(ShardInfo, line) for line in member(tree, "shards", list))
    for shard in shards:
        _check(shard)
    named = tree.get("classes") is not None
    return Manifest(shards=shards, classes=tuple(map(str, member(tree, "classes", list))) if named else None)


def _check(shard: ShardInfo) -> None:
    for name, most in (("num_samples", MAX_SAMPLES), ("size_bytes", MAX_SIZE_BYTES)):
        if not 0 <= (count := getattr(shard, name)) < most:
            raise UserError(f"shard {shard.name!r} has {name} {count}, expected less than {most}")
    if is_remote(shard.name):
        check_location(shard.name)
    if is_remote(shard.index) or Path(shard.index).is_absolute() or ".." in Path(shard.index).parts:
        raise UserError(f"index {shard.index!r} lies outside the manifest's folder")
