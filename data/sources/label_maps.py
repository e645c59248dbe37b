"""Images with a label map each, for segmentation: ADE20K, or any folder of images beside one of PNG maps.

    SOURCE/images/training/x.jpg          SOURCE/images/x.jpg         also `labels`, `masks`, ... for `annotations`,
    SOURCE/annotations/training/x.png     SOURCE/annotations/x.png    train, val, ... for the splits, and the splits
                                                                      outside (data/sources/trees/pairs.py)

A map is written as it is, byte for byte, as `.seg.png`: what its values mean is for the recipe to say (ADE20K: 0 is
nothing, 1 to 150 are the classes of objectInfo150.txt; others count from 0 and mark the void with a value of its own).
With `--map-classes` its colours or values become class numbers (data/images/map_classes.py).
"""

import io
import logging
import warnings
from collections.abc import Container, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.images.decode import BadImage, check_rows, read_header
from data.images.map_classes import MapClasses, read_map_classes
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat, refuse_resize
from data.sources.image_folder import BesideFile, ImageFiles
from data.sources.preparation import Prepared, read_limited
from data.sources.trees.listing import holds, paths_in, subfolders, walk
from data.sources.trees.pairs import MAP_SUFFIXES, Pair, find_pairs
from engine.errors import UserError
from engine.terms import Size

logger = logging.getLogger(__name__)

MAP_FOLDERS = ("annotations", "labels", "masks")
SPLIT_LISTS = "Segmentation"
"""VOC's lists of images that have a map, in ImageSets."""
MAP_MODES = ("L", "P", "1", "I;16", "I")


@dataclass(frozen=True)
class LabelMap(BesideFile):
    """The label map of one image."""

    classes: MapClasses | None = None
    """What its colours or values stand for; None: it is kept as it is."""

    def members(self, image: Prepared, *, preparation: Preparation) -> dict[str, bytes]:
        """Read it, if it is of the image's size."""
        content = read_limited(Path(self.path))
        if self.classes is not None:
            read_header(content, max_pixels=preparation.max_pixels)
            content = self.classes.recode(content)
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
                    if header.layout is not None:
                        check_rows(image, content, layout=header.layout)
        except Exception as error:  # plugins raise what they like on broken files
            raise BadImage(f"the label map does not decode: {error}") from error
    if mode not in MAP_MODES:
        raise BadImage(
            f"the label map is a PNG of mode {mode}, expected one channel (modes {', '.join(MAP_MODES)}); where "
            "colours stand for classes, say which with --map-classes FILE, lines `R G B name`"
        )


def has_label_maps(folder: Path) -> bool:
    """Whether a folder has images beside label maps."""
    return folder.is_dir() and find_pairs(folder, suffixes=MAP_SUFFIXES, lists=SPLIT_LISTS) is not None


def find_label_maps(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """Pair images with their maps, by split.

    Raises:
        UserError: no such folders, images whose map is missing, or a resize is asked for.
    """
    refuse_resize(options, what="label maps")
    folder, classes = Path(options.source), options.class_names
    map_classes = None if options.map_classes is None else read_map_classes(options.map_classes)
    if map_classes is not None:
        classes = map_classes.names
    pairs = find_pairs(folder, suffixes=MAP_SUFFIXES, lists=SPLIT_LISTS, splits=options.splits)
    if pairs is None:
        raise UserError(
            f"expected images/ and one of {', '.join(MAP_FOLDERS)} (with PNG maps of the same names) in {folder}, or "
            "train/ and val/ with both"
        )
    suffix = options.map_suffix
    found = {name: _paired(pair, suffix=suffix) for name, pair in pairs.items()}
    _say_folders(pairs["train"].images)
    return {
        name: ImageFiles(
            paths=tuple(map_paths),
            beside=tuple(LabelMap(path, map_classes) for path in map_paths.values()),
            classes=classes,
            preparation=options.preparation,
        )
        for name, map_paths in found.items()
    }


def _say_folders(images: Path) -> None:
    """Say that folders inside, which may be towns or classes, count for nothing."""
    inside = [path.name for path in subfolders(images) if holds(path)]
    if len(inside) > 1:
        shown = ", ".join(inside[:3])
        logger.info("%s, ... in %s are not read as classes, which --source %s would do", shown, images, images)


def _paired(pair: Pair, *, suffix: str | None) -> dict[str, str]:
    """Find the map of each image: of its name, or with what all maps have behind it.

    Raises:
        UserError: no image, or one without a map.
    """
    images, maps = pair.images, pair.labels
    paths = pair.paths()
    existing = {path for files in walk(maps, suffixes=MAP_SUFFIXES) for path in paths_in(maps, files)}
    plain = [str(pair.beside(path, suffix=".png")) for path in paths]
    if suffix is None:
        suffix = "" if existing.issuperset(plain) else _common_suffix(plain, existing, maps=maps)
    map_paths = [_with_suffix(path, suffix, existing=existing) for path in plain]
    others = {Path(path).suffix for path in existing} - {".png"}
    missing = [path for path in map_paths if path not in existing]
    if not paths:
        raise UserError(f"no image in {images}")
    if missing and others:
        raise UserError(
            f"the label maps in {maps} are {' and '.join(sorted(others))}, expected .png: convert them, a JPEG's from "
            "where it was made, since values change in JPEG; where these folders are classes, say --format folder "
            "--class-depth 1"
        )
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(paths)} images in {images} have no label map, for example {missing[0]}; where "
            "maps are called otherwise, such as x_mask.png for x.jpg, say how with --map-suffix _mask"
        )
    _refuse_shared(dict(zip(paths, map_paths, strict=True)))
    if len(existing) > len(paths) and pair.stems is None:
        logger.warning("%s: %d label maps have no image and are left out", maps, len(existing) - len(paths))
    return dict(zip(paths, map_paths, strict=True))


def _refuse_shared(map_paths: Mapping[str, str]) -> None:
    """Refuse images that would have the same map, which belongs to one of them at most."""
    images: dict[str, str] = {}
    for image, path in map_paths.items():
        if (other := images.setdefault(path, image)) != image:
            raise UserError(
                f"{other} and {image} would both have the label map {path}: give each image a map of its own name (a "
                "copy, where they do share it)"
            )


def _with_suffix(path: str, suffix: str, *, existing: Container[str]) -> str:
    """Add a suffix to a map's name, or put it in the place of an image's own (`x_leftImg8bit`, `x_sat`)."""
    stem = path.removesuffix(".png")
    whole, shorter = f"{stem}{suffix}.png", f"{stem.rpartition('_')[0]}{suffix}.png"
    return shorter if suffix and whole not in existing and shorter in existing else whole


def _common_suffix(plain: Sequence[str], existing: AbstractSet[str], *, maps: Path) -> str:
    """Find what stands behind the images' names in the names of all their maps; nothing where there is no such thing.

    Raises:
        UserError: there are several, as in Cityscapes.
    """
    first = plain[0].removesuffix(".png") if plain else ""
    starts = (first, first.rpartition("_")[0])
    ends = {
        path.removeprefix(start).removesuffix(".png") for start in starts for path in existing if path.startswith(start)
    }
    suffixes = [
        end
        for end in sorted(end for end in ends if end and not end[0].isalnum() and "/" not in end)
        if all(_with_suffix(path, end, existing=existing) in existing for path in plain)
    ]
    own = [end for end in suffixes if len({_with_suffix(path, end, existing=existing) for path in plain}) == len(plain)]
    suffixes = own or suffixes[:1]  # that images share their map is said of the first
    if len(suffixes) > 1:
        raise UserError(f"{maps} holds several maps of each image: choose with --map-suffix {' or '.join(suffixes)}")
    if suffixes:
        logger.info("label maps are called as their images, with %s behind", suffixes[0])
    return suffixes[0] if suffixes else ""


FORMAT = SourceFormat(
    open=find_label_maps,
    says="images with label maps",
    recognise=has_label_maps,
    options=("classes", "splits", "map_classes", "map_suffix"),
    narrows=("folder",),
)
