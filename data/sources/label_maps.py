"""Images with a label map each, for segmentation: ADE20K, or any folder of images beside one of PNG maps.

    SOURCE/images/training/x.jpg          SOURCE/images/x.jpg         also `labels` or `masks` for `annotations`,
    SOURCE/annotations/training/x.png     SOURCE/annotations/x.png    and train, val, ... for the splits

A map is written as it is, byte for byte, as `.seg.png`: what its values mean is for the recipe to say (ADE20K: 0 is
nothing, 1 to 150 are the classes of objectInfo150.txt; others count from 0 and mark the void with a value of its own).
"""

import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.images.decode import BadImage, read_header
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat
from data.sources.image_folder import ImageFiles, images_of, split_folders
from data.sources.preparation import Prepared, read_limited
from engine.errors import UserError
from engine.terms import Size

logger = logging.getLogger(__name__)

MAP_FOLDERS = ("annotations", "labels", "masks")
MAP_MODES = ("L", "P", "1", "I;16", "I")


@dataclass(frozen=True)
class LabelMap:
    """The label map of one image."""

    path: str
    """Its file."""

    def __str__(self) -> str:
        return self.path

    def members(self, image: Prepared, *, preparation: Preparation) -> dict[str, bytes]:
        """Read it, if it is of the image's size."""
        content = read_limited(Path(self.path))
        check_label_map(content, size=image.size, preparation=preparation)
        return {"seg.png": content}


def check_label_map(content: bytes, *, size: Size, preparation: Preparation) -> None:
    """Refuse what is no PNG of one channel and of the image's ``size``, or does not decode.

    Raises:
        BadImage: with the reason.
    """
    header = read_header(content, max_pixels=preparation.max_pixels)
    if (header.height, header.width) != size:
        raise BadImage(f"the label map is {header.height}x{header.width} pixels, the upright image {size[0]}x{size[1]}")
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


def find_label_maps(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """Pair images with their maps, by split.

    Raises:
        UserError: no such folders, images whose map is missing, or a resize is asked for.
    """
    if options.size is not None:
        raise UserError("--size cannot be used with label maps, which would no longer fit; resize when training")
    folder, classes = Path(options.source), options.class_names
    maps = _map_folder(folder)
    if maps is None:
        raise UserError(
            f"expected images/ and one of {', '.join(MAP_FOLDERS)} (with PNG maps of the same names) in {folder}"
        )
    images = folder / "images"
    splits = split_folders(images) or {"train": images}
    return {
        name: _pairs(path, maps=maps / path.relative_to(images), classes=classes, preparation=options.preparation)
        for name, path in splits.items()
    }


def _map_folder(folder: Path) -> Path | None:
    if not (folder / "images").is_dir():
        return None
    return next((folder / name for name in MAP_FOLDERS if (folder / name).is_dir()), None)


def _pairs(images: Path, *, maps: Path, classes: tuple[str, ...] | None, preparation: Preparation) -> ImageFiles:
    paths = images_of(images, deep=True)
    map_paths = [str((maps / Path(path).relative_to(images)).with_suffix(".png")) for path in paths]
    existing = {str(path) for path in maps.rglob("*.png")} if maps.is_dir() else set[str]()
    missing = [path for path in map_paths if path not in existing]
    if not paths:
        raise UserError(f"no image in {images}")
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} images in {images} have no label map, for example {missing[0]}"
        )
    if len(existing) > len(paths):
        logger.warning("%s: %d label maps have no image and are left out", maps, len(existing) - len(paths))
    beside = tuple(LabelMap(path) for path in map_paths)
    return ImageFiles(paths=tuple(paths), beside=beside, classes=classes, preparation=preparation)


FORMAT = SourceFormat(open=find_label_maps, recognise=has_label_maps, options=("classes",))
