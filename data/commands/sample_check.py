"""Looks at a stored sample in full: its image decodes, its label map fits the image, its annotations are JSON."""

from dataclasses import dataclass

from data.images.decode import BadImage, decode_rgb, read_header
from data.shards.shard_set import ShardSet
from data.sources.config import Preparation
from data.sources.label_maps import check_label_map
from data.sources.preparation import MAX_FILE_BYTES
from engine.documents import DocumentError, parse_json
from engine.terms import Size

SAMPLES_PER_TASK = 32
JSON_EXTENSIONS = ("json", "boxes.json")


@dataclass(frozen=True, kw_only=True)
class SampleCheck:
    """What to look into, and what is too large to."""

    shards: ShardSet
    """The samples."""
    max_pixels: int
    """Images that claim more pixels are faulty."""


def check_samples(check: SampleCheck, places: list[tuple[int, int]]) -> list[str | None]:
    """Say what is wrong with each of the samples at (shard, position), if anything."""
    return [_problem(check, shard=shard, position=position) for shard, position in places]


def _problem(check: SampleCheck, *, shard: int, position: int) -> str | None:
    entry = check.shards.entries(shard)[position]
    try:
        if max(member.size for member in (entry.image, *entry.members)) > MAX_FILE_BYTES:
            raise BadImage(f"it holds a member of more than {MAX_FILE_BYTES} bytes")
        image = check.shards.read(shard, position).image
        header = read_header(image, max_pixels=check.max_pixels)
        decode_rgb(image, header=header)
        size = (header.height, header.width)
        for member in entry.members:
            _check_member(check, shard=shard, position=position, extension=member.extension, size=size)
    except BadImage as error:
        return f"sample {entry.key} of {check.shards.manifest.shards[shard].name} does not decode: {error}"
    return None


def _check_member(check: SampleCheck, *, shard: int, position: int, extension: str, size: Size) -> None:
    if extension not in ("seg.png", *JSON_EXTENSIONS):
        return
    content = check.shards.read_member(shard, position, extension=extension) or b""
    if extension == "seg.png":
        check_label_map(content, size=size, preparation=Preparation(max_pixels=check.max_pixels))
        return
    try:
        parse_json(content)
    except DocumentError as error:
        raise BadImage(f"its .{extension}: {error}") from None
