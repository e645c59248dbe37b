"""A source of images from outside the packages: each frame of a GIF and each page of a TIFF is a sample.

python data/main.py write --extension examples/extensions/source.py --format frames --source FOLDER --out shards/x
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.sources.config import Preparation
from data.sources.formats import SourceFormat
from data.sources.preparation import prepare_image, read_limited
from data.sources.registry import FORMATS
from data.writing.writer import NewSample, Rejected


@dataclass(frozen=True)
class Frames:
    """Frames as (file, number in it)."""

    places: tuple[tuple[Path, int], ...]
    preparation: Preparation
    classes = labels = None

    def __len__(self) -> int:
        return len(self.places)

    def listing(self) -> Iterator[str]:
        """Yield a line for each frame: a killed command goes on only where the list is the same."""
        return (f"{path}#{frame}" for path, frame in self.places)

    def prepare(self, number: int) -> NewSample | Rejected:
        """Read one frame as PNG, checked and shrunk as the options say; what cannot be read is named in the ledger."""
        (path, frame), png = self.places[number], io.BytesIO()
        try:
            with Image.open(io.BytesIO(read_limited(path)), formats=["GIF", "TIFF"]) as image:
                image.seek(frame)
                if image.width * image.height > self.preparation.max_pixels:
                    raise ValueError(f"{image.height}x{image.width} pixels, at most {self.preparation.max_pixels}")
                image.convert("RGB").save(png, "PNG")
            prepared = prepare_image(png.getvalue(), preparation=self.preparation)
        except Exception as error:  # Pillow's plugins raise what they like on broken files
            return Rejected(source=f"{path}#{frame}", reason=str(error))
        return NewSample(source=f"{path}#{frame}", members={prepared.extension: prepared.content})


def _places(folder: str) -> Iterator[tuple[Path, int]]:
    for path in sorted([*Path(folder).rglob("*.gif"), *Path(folder).rglob("*.tif*")]):
        num_frames = 1  # of a broken file: `prepare` says why
        with suppress(Exception), Image.open(path) as image:
            num_frames = getattr(image, "n_frames", 1)
        yield from ((path, frame) for frame in range(num_frames))


FORMATS["frames"] = __name__
FORMAT = SourceFormat(open=lambda options, _: {"train": Frames(tuple(_places(options.source)), options.preparation)})
