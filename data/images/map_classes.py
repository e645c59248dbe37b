"""From the colours or values of a label map, as some annotation tools paint them, to class numbers.

# classes.txt, one line a class in the order of their numbers, from 0
0 0 0        background
255 0 0      car
7            car              a value instead of a colour, where maps have one channel
255          void             in no class: becomes 255; also called ignore or unlabelled
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.images.decode import BadImage, check_rows
from data.images.png import read_layout
from engine.documents import read_text
from engine.errors import UserError, is_refusal

VOID = 255
VOID_NAMES = ("void", "ignore", "ignored", "unlabelled", "unlabeled")
MAX_CLASSES = 255
COLOURS, GREY = 3, 1


@dataclass(frozen=True)
class MapClasses:
    """Which class each colour, or value, of a label map stands for."""

    names: tuple[str, ...]
    """Class names by number."""
    channels: int
    """Numbers that tell a class: 3 of a colour, or the 1 value."""
    codes: tuple[int, ...]
    """Colours (red first, a byte each) or values, rising."""
    classes: tuple[int, ...]
    """The class of each of them; `VOID` for none."""

    def recode(self, content: bytes) -> bytes:
        """Write a map's classes as a PNG of one channel.

        Raises:
            BadImage: it does not decode, or has what is no class; names it.
        """
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                image.load()
                check_rows(image, content, layout=read_layout(content))
                pixels = np.asarray(image.convert("RGB") if self.channels == COLOURS else image)
        except Exception as error:
            if not isinstance(error, UserError) and not is_refusal(error):
                raise
            raise BadImage(f"the label map does not decode: {error}") from error
        if pixels.ndim == 3 and self.channels == GREY:
            pixels = _only_channel(pixels)
        result = np.empty(pixels.shape[:2], np.uint8)
        codes, classes = np.array(self.codes), np.array(self.classes, np.uint8)
        for row, line in enumerate(pixels):  # one at a time: numbers of eight bytes take much more than the map
            values = line.astype(np.int64)
            values = values if values.ndim == 1 else (values << (16, 8, 0)).sum(axis=1)
            places = np.searchsorted(codes, values).clip(max=len(codes) - 1)
            unknown = codes[places] != values
            if unknown.any():
                raise BadImage(f"the label map has {self._named(int(values[unknown][0]))}, which is no class's")
            result[row] = classes[places]
        written = io.BytesIO()
        Image.fromarray(result).save(written, "PNG")
        return written.getvalue()

    def _named(self, code: int) -> str:
        if self.channels == GREY:
            return f"the value {code}"
        return f"the colour {code >> 16} {code >> 8 & 255} {code & 255}"


def read_map_classes(path: Path) -> MapClasses:
    """Read the list of colours or values with their classes' names; a name that comes again is the same class.

    Raises:
        UserError: it holds no such lines; names the first that is none.
    """
    numbers: dict[str, int] = {}
    codes: dict[int, int] = {}
    kinds: set[int] = set()
    for place, values, name in _lines(read_text(path)):
        if len(values) not in (COLOURS, GREY) or not name or max(values) > (255 if len(values) == COLOURS else 65_535):
            raise UserError(
                f"line {place} of {path}: expected a colour `R G B name` or a value `V name`, of the class with the "
                "number that its line has, from 0"
            )
        kinds.add(len(values))
        number = VOID if name.lower() in VOID_NAMES else numbers.setdefault(name, len(numbers))
        code = int.from_bytes(bytes(values), "big") if len(values) == COLOURS else values[0]
        if codes.setdefault(code, number) != number:
            raise UserError(f"line {place} of {path}: {' '.join(map(str, values))} stands for another class already")
    if not numbers or len(kinds) > 1 or len(numbers) > MAX_CLASSES:
        raise UserError(
            f"{path} must hold 1 to {MAX_CLASSES} classes, all by colours (R G B name) or all by values (V name)"
        )
    rising = sorted(codes)
    return MapClasses(tuple(numbers), kinds.pop(), tuple(rising), tuple(codes[code] for code in rising))


def _lines(text: str) -> Iterator[tuple[int, Sequence[int], str]]:
    """Yield place, numbers and name of each line; a first line of names alone is a table's header."""
    for place, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        fields = [words for field in re.split(r"[,;\t]", line.split("#")[0]) if (words := field.split())]
        if fields and (place > 1 or any(_is_number(word) for words in fields for word in words)):
            numbers, name = _divided(fields)
            yield place, [int(number) for number in numbers], " ".join(name)


def _divided(fields: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """Tell the numbers from the name's words, which may have numbers among them or at their end, as `route 66`."""
    numbers = [word for words in fields if all(map(_is_number, words)) for word in words]
    name = [word for words in fields if not all(map(_is_number, words)) for word in words]
    if not numbers:  # they stand in one field with the name, before or behind it
        count = next((place for place, word in enumerate(name) if not _is_number(word)), 0)
        numbers, name = name[:count], name[count:]
    if not numbers and len(fields) == 1:
        count = next(place for place, word in enumerate(reversed(name)) if not _is_number(word))
        numbers, name = name[len(name) - count :], name[: len(name) - count]
    return numbers, name


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _only_channel(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Take the value of a grey map that was saved with three channels."""
    if (pixels[..., 0] != pixels[..., 1]).any() or (pixels[..., 0] != pixels[..., 2]).any():
        raise BadImage("the label map has colours, and the classes are given by one value each")
    return pixels[..., 0]
