"""A contact sheet: pictures of a data set side by side, with their labels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.images.decode import BadImage
from data.images.transforms import resize_center_crop
from data.shards.shard_set import Sample, ShardSet
from engine.errors import UserError
from engine.randomness import stream

CAPTION_PX = 18
GAP_PX = 6
PAPER, INK = (250, 250, 248), (40, 40, 40)


def contact_sheet(shards: ShardSet, *, count: int, columns: int = 8, tile_px: int = 128, seed: int = 0) -> Image.Image:
    """Return ``count`` random samples in rows of ``columns``, each under its own middle crop."""
    if count < 1 or columns < 1 or tile_px < 1:
        raise UserError(
            f"a contact sheet needs at least one picture, column and pixel; got {count}, {columns}, {tile_px}"
        )
    if not shards.num_samples:
        raise UserError(f"the manifest of {shards.folder} names no sample to show")
    samples = _random_samples(shards, count=count, seed=seed)
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    across, down = tile_px + GAP_PX, tile_px + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (columns * across + GAP_PX, rows * down + GAP_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for place, sample in enumerate(samples):
        left, top = GAP_PX + place % columns * across, GAP_PX + place // columns * down
        sheet.paste(_tile(sample, tile_px=tile_px), (left, top))
        draw.text((left + 1, top + tile_px + 2), _caption(sample, shards=shards, font=font, width=tile_px), INK, font)
    return sheet


def write_contact_sheet(path: Path, sheet: Image.Image) -> None:
    """Save a sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _random_samples(shards: ShardSet, *, count: int, seed: int) -> list[Sample]:
    ids = np.sort(stream(seed, "show").choice(shards.num_samples, size=min(count, shards.num_samples), replace=False))
    starts = np.concatenate([[0], np.cumsum(shards.sizes)])
    places = np.searchsorted(starts, ids, side="right") - 1
    return [shards.read(int(shard), int(number - starts[shard])) for shard, number in zip(places, ids, strict=True)]


def _tile(sample: Sample, *, tile_px: int) -> Image.Image:
    try:
        pixels = resize_center_crop(sample.image, size=(tile_px, tile_px), crop_ratio=1.0)
    except BadImage:
        return Image.new("RGB", (tile_px, tile_px), (200, 60, 60))
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _caption(
    sample: Sample, *, shards: ShardSet, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    names = shards.classes
    text = sample.key if sample.label is None else str(sample.label)
    if names is not None and sample.label is not None and sample.label < len(names):
        text = names[sample.label]
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text
