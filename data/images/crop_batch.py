"""One crop of each image of a micro-batch, stage by stage: all headers, then all decoding, then all resizing.

Image after image, each stage finds its code and tables displaced from the processor's caches by the one before. Stage
by stage a micro-batch of 64 takes 8 to 17 % less time (COCO photographs and ImageNet samples to 224 px), with the same
pixels. Decoded images wait in memory meanwhile, so large ones go in smaller groups.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from data.config import DecodeMode
from data.images.decode import MAX_PIXELS, BadImage, Header, Pixels, decode_part, read_header
from data.images.transforms import Crop, Interpolation, cut, resize, shrink_of
from data.shards.shard_set import Sample
from engine.terms import Size

GROUP_PIXELS = 2**24
"""Most pixels that wait decoded: 50 MB."""

S = TypeVar("S")
T = TypeVar("T")
Draw = Callable[[Sample, Header], Crop]


class PlannedCrop(NamedTuple):
    """An image and the crop to cut from it."""

    data: bytes
    header: Header
    crop: Crop


class Part(NamedTuple):
    """The crop's pixels, decoded but not yet resized."""

    pixels: Pixels
    crop: Crop


def crop_batch(
    samples: Sequence[Sample],
    draw: Draw,
    *,
    size: Size,
    interpolation: Interpolation = "bicubic",
    decode: DecodeMode = "exact",
    max_pixels: int = MAX_PIXELS,
) -> list[tuple[Pixels, Crop] | BadImage]:
    """Cut from each sample the crop that ``draw`` chooses, as [3, height, width] of ``size``, or say why not."""
    crops: list[tuple[Pixels, Crop] | BadImage] = []
    for group in groups(plan_crops(samples, draw, max_pixels=max_pixels)):
        crops += resize_parts(decode_parts(group, size=size, decode=decode), size=size, interpolation=interpolation)
    return crops


def plan_crops(samples: Sequence[Sample], draw: Draw, *, max_pixels: int = MAX_PIXELS) -> list[PlannedCrop | BadImage]:
    """Read the headers and draw the crops."""

    def plan(sample: Sample) -> PlannedCrop:
        header = read_header(sample.image, max_pixels=max_pixels)
        return PlannedCrop(sample.image, header, draw(sample, header))

    return [_or_bad(plan, sample) for sample in samples]


def groups(plans: Sequence[PlannedCrop | BadImage]) -> Iterator[list[PlannedCrop | BadImage]]:
    """Divide plans, in their order, so that each group's images fit into memory together."""
    group: list[PlannedCrop | BadImage] = []
    pixels = 0
    for plan in plans:
        more = 0 if isinstance(plan, BadImage) else plan.header.height * plan.header.width
        if group and pixels + more > GROUP_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(plan)
        pixels += more
    if group:
        yield group


def decode_parts(plans: Sequence[PlannedCrop | BadImage], *, size: Size, decode: DecodeMode) -> list[Part | BadImage]:
    """Decode what each crop needs."""

    def part(plan: PlannedCrop) -> Part:
        crop = plan.crop
        shrink = shrink_of(crop, size) if decode == "scaled" else 1
        pixels, shrink = decode_part(plan.data, header=plan.header, bottom=crop.top + crop.height, shrink=shrink)
        return Part(cut(pixels, crop, shrink=shrink), crop)

    return [_or_bad(part, plan) for plan in plans]


def resize_parts(
    parts: Sequence[Part | BadImage], *, size: Size, interpolation: Interpolation = "bicubic"
) -> list[tuple[Pixels, Crop] | BadImage]:
    """Resize and flip the crops."""

    def resized(part: Part) -> tuple[Pixels, Crop]:
        return resize(part.pixels, size=size, interpolation=interpolation, flip=part.crop.flip), part.crop

    return [_or_bad(resized, part) for part in parts]


def _or_bad(stage: Callable[[S], T], item: S | BadImage) -> T | BadImage:
    if isinstance(item, BadImage):
        return item
    try:
        return stage(item)
    except BadImage as error:
        return error
