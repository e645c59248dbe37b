"""Looks at a stored sample in full: its image decodes, its label map fits it, its objects can be learnt from."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.images.annotations import ObjectFaults, read_label_map
from data.images.decode import BadImage, decode_rgb, read_header
from data.shards.shard_set import ShardSet
from data.sources.config import Preparation
from data.sources.label_maps import check_label_map
from data.sources.preparation import MAX_FILE_BYTES
from engine.documents import DocumentError, parse_json
from engine.terms import Size

SAMPLES_PER_TASK = 32
MAX_VALUES = 20
JSON_EXTENSIONS = ("json", "boxes.json")


@dataclass(frozen=True, kw_only=True)
class SampleCheck:
    """What to look into, and what is too large to."""

    shards: ShardSet
    """The samples."""
    max_pixels: int
    """Images that claim more pixels are faulty."""


@dataclass(kw_only=True)
class SampleReport:
    """What one sample holds."""

    problem: str | None = None
    """What is wrong with it."""
    faults: ObjectFaults = field(default_factory=ObjectFaults)
    """Its objects that training leaves out."""
    values: Counter[int] = field(default_factory=Counter[int])
    """Pixels of its label map by their value."""


def check_samples(check: SampleCheck, places: list[tuple[int, int]]) -> list[SampleReport]:
    """Look into each of the samples at (shard, position)."""
    return [_report(check, shard=shard, position=position) for shard, position in places]


def map_values(content: bytes, *, size: Size) -> Counter[int]:
    """Count a label map's pixels by their value."""
    values, counts = np.unique(read_label_map(content, size=size), return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def describe_values(values: Counter[int]) -> str:
    """Name the values of label maps with their shares; of very many, those that most pixels have."""
    total = values.total()
    shown = sorted(dict(values.most_common(MAX_VALUES)).items())
    text = ", ".join(f"{value} ({count / total:.1%})" for value, count in shown)
    more = f" and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else ""
    binary = (
        "; with classes counted from 0, set labels.void to nothing and write 1 for 255"
        if set(values) == {0, 255}
        else ""
    )
    return f"label maps hold the values {text}{more}{binary}"


def _report(check: SampleCheck, *, shard: int, position: int) -> SampleReport:
    entry = check.shards.entries(shard)[position]
    report = SampleReport()
    try:
        if max(member.size for member in (entry.image, *entry.members)) > MAX_FILE_BYTES:
            raise BadImage(f"it holds a member of more than {MAX_FILE_BYTES} bytes")
        image = check.shards.read(shard, position).image
        header = read_header(image, max_pixels=check.max_pixels)
        decode_rgb(image, header=header)
        size = (header.height, header.width)
        for member in entry.members:
            if member.extension in ("seg.png", *JSON_EXTENSIONS):
                content = check.shards.read_member(shard, position, extension=member.extension) or b""
                _check_member(member.extension, content, check=check, size=size, key=entry.key, report=report)
    except BadImage as error:
        name = check.shards.manifest.shards[shard].name
        report.problem = f"sample {entry.key} of {name} does not decode: {error}"
    return report


def _check_member(
    extension: str, content: bytes, *, check: SampleCheck, size: Size, key: str, report: SampleReport
) -> None:
    if extension == "seg.png":
        check_label_map(content, size=size, preparation=Preparation(max_pixels=check.max_pixels))
        report.values = map_values(content, size=size)
        return
    try:
        tree: Any = parse_json(content)
    except DocumentError as error:
        raise BadImage(f"its .{extension}: {error}") from None
    if extension == "json" and isinstance(tree, dict):
        report.faults.add(tree.get("objects"), size=size, name=str(tree.get("file_name", key)))
