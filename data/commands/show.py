"""`data/main.py show`: a contact sheet, images of a data set side by side with their labels, and the class counts."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.commands.class_counts import class_counts, count_table
from data.commands.class_order import class_mix
from data.commands.config import Show
from data.commands.console import say, start_console
from data.commands.sample_check import describe_values, map_values
from data.images.decode import BadImage, read_header
from data.images.transforms import resize_center_crop
from data.shards.shard_set import Sample, ShardSet, open_shards
from engine.errors import UserError
from engine.randomness import stream
from engine.run.durable import replacing

CAPTION_PX = 18
GAP_PX = 6
PAPER, INK = (250, 250, 248), (40, 40, 40)


def run_show(options: Show) -> None:
    """Draw a contact sheet and say what the shards hold."""
    console = start_console()
    shards = open_shards(options.shards, cache=options.cache)
    sheet = contact_sheet(shards, count=options.count, columns=options.columns, seed=options.seed)
    values = shown_values(shards, count=options.count, seed=options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.out) as beside:
        sheet.save(beside, "PNG")
    if counts := class_counts(shards):
        console.print(count_table(counts))
    if values:
        say(console, f"in the images shown, {describe_values(values)}")
    mix = class_mix(shards.labels(), sizes=shards.sizes)
    if mix is not None and mix.is_sorted:
        say(console, f"warning: {mix.warning}")
    console.print(f"{shards.num_samples} samples in {len(shards.sizes)} shards; contact sheet in {options.out}")


def contact_sheet(shards: ShardSet, *, count: int, columns: int = 8, tile_px: int = 128, seed: int = 0) -> Image.Image:
    """Draw ``count`` random samples in rows of ``columns``, each with its label below its middle crop."""
    if count < 1 or columns < 1 or tile_px < 1:
        raise UserError(
            f"a contact sheet needs at least one image, column and pixel; got {count}, {columns}, {tile_px}"
        )
    if not shards.num_samples:
        raise UserError(f"the manifest of {shards.folder} names no sample to show")
    samples = list(_random_samples(shards, count=count, seed=seed))
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


def shown_values(shards: ShardSet, *, count: int, seed: int = 0) -> Counter[int]:
    """Count the pixels of the shown images' label maps by their value."""
    values = Counter[int]()
    for sample in _random_samples(shards, count=count, seed=seed, extensions=("seg.png",)):
        with contextlib.suppress(BadImage):
            if "seg.png" in sample.members:
                header = read_header(sample.image)
                values.update(map_values(sample.members["seg.png"], size=(header.height, header.width)))
    return values


def _random_samples(shards: ShardSet, *, count: int, seed: int, extensions: tuple[str, ...] = ()) -> Iterator[Sample]:
    ids = np.sort(stream(seed, "show").choice(shards.num_samples, size=min(count, shards.num_samples), replace=False))
    for number in ids:
        yield shards.read_many([(*shards.place_of(int(number)), 0)], extensions=extensions)[0]


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
