"""Pictures with a label map each, for segmentation: ADE20K, or any folder of pictures beside one of PNG maps.

    SOURCE/images/training/x.jpg          SOURCE/images/x.jpg         also `labels` or `masks` for `annotations`,
    SOURCE/annotations/training/x.png     SOURCE/annotations/x.png    and train, val, ... for the splits

A map is written as it is, byte for byte, as `.seg.png`: what its values mean is for the recipe to say (ADE20K: 0 is nothing,
1 to 150 are the classes of objectInfo150.txt; others count from 0 and mark the void with a value of its own).
"""

import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.images.decode import BadImage, read_header
from data.images.preparation import Preparation, prepare_image, read_limited
from data.sources.image_folder import images_of, split_folders
from data.writing.new_sample import NewSample, Rejected
from engine.errors import UserError
from engine.terms import Size

logger = logging.getLogger(__name__)

MAP_FOLDERS = ("annotations", "labels", "masks")
MAP_MODES = ("L", "P", "1", "I;16", "I")


@dataclass(frozen=True, kw_only=True)
class MappedImages:
    """Pictures with label maps."""

    paths: tuple[str, ...]
    """The pictures."""
    maps: tuple[str, ...]
    """Their maps."""
    classes: tuple[str, ...] | None
    """Names of what the maps tell apart."""
    preparation: Preparation
    """What is checked; never a resize."""
    labels: None = None
    """A picture as a whole has no class."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def prepare(self, number: int) -> NewSample | Rejected:
        """Return one picture with its map, if they are of one size."""
        path = self.paths[number]
        try:
            image = prepare_image(read_limited(Path(path)), preparation=self.preparation)
            content = read_limited(Path(self.maps[number]))
            check_label_map(content, size=(image.height, image.width), preparation=self.preparation)
        except (BadImage, OSError) as error:
            return Rejected(source=path, reason=str(error))
        return NewSample(source=path, members={image.extension: image.content, "seg.png": content})

    def listing(self) -> Iterator[str]:
        """Yield a line for each pair."""
        return (f"{path} {label_map}" for path, label_map in zip(self.paths, self.maps, strict=True))


def check_label_map(content: bytes, *, size: Size, preparation: Preparation) -> None:
    """Refuse what is no PNG of one channel of the picture's (height, width), or does not decode.

    Raises:
        BadImage: with the reason.
    """
    header = read_header(content, max_pixels=preparation.max_pixels)
    if (header.height, header.width) != size:
        raise BadImage(
            f"the label map is {header.height}x{header.width} pixels, the upright picture {size[0]}x{size[1]}"
        )
    if header.format != "PNG":
        raise BadImage(f"the label map is a {header.format}, expected a PNG of one channel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limit on pixels was applied above
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                mode = image.mode
                if preparation.check == "decode":
                    image.load()
        except Exception as error:  # plugins raise what they like on broken files
            raise BadImage(f"the label map does not decode: {error}") from error
    if mode not in MAP_MODES:
        raise BadImage(f"the label map is a PNG of mode {mode}, expected one channel (modes {', '.join(MAP_MODES)})")


def has_label_maps(folder: Path) -> bool:
    """Whether a folder has images/ and a folder of PNG maps."""
    maps = _map_folder(folder)
    return maps is not None and next(maps.rglob("*.png"), None) is not None


def find_label_maps(
    folder: Path, *, classes: tuple[str, ...] | None, preparation: Preparation
) -> dict[str, MappedImages]:
    """Return the pairs by split.

    Raises:
        UserError: no such folders, pictures whose map is missing, or a resize is asked for.
    """
    if preparation.resize is not None:
        raise UserError("--size cannot be used with label maps, which would no longer fit; resize when training")
    maps = _map_folder(folder)
    if maps is None:
        raise UserError(
            f"expected images/ and one of {', '.join(MAP_FOLDERS)} (with PNG maps of the same names) in {folder}"
        )
    images = folder / "images"
    splits = split_folders(images) or {"train": images}
    return {
        name: _pairs(path, maps=maps / path.relative_to(images), classes=classes, preparation=preparation)
        for name, path in splits.items()
    }


def _map_folder(folder: Path) -> Path | None:
    found = (folder / name for name in MAP_FOLDERS if (folder / name).is_dir())
    return next(found, None) if (folder / "images").is_dir() else None


def _pairs(images: Path, *, maps: Path, classes: tuple[str, ...] | None, preparation: Preparation) -> MappedImages:
    paths = images_of(images, deep=True)
    wanted = [(maps / Path(path).relative_to(images)).with_suffix(".png") for path in paths]
    there = {str(path) for path in maps.rglob("*.png")} if maps.is_dir() else set[str]()
    missing = [str(path) for path in wanted if str(path) not in there]
    if not paths:
        raise UserError(f"no image in {images}")
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} pictures in {images} have no label map, for example {missing[0]}"
        )
    if len(there) > len(paths):
        logger.warning("%s: %d label maps have no picture and are left out", maps, len(there) - len(paths))
    return MappedImages(paths=tuple(paths), maps=tuple(map(str, wanted)), classes=classes, preparation=preparation)
