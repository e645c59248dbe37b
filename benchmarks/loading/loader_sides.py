"""The pipelines that `benchmarks/loading/loader.py` compares: uint8 micro-batches [64, 3, 224, 224] of the same images.

All of them draw a random resized crop (scale 0.2 to 1) and a flip, with the same interpolation, and decode in the
process that calls them, or in as many workers as are asked for. The rivals are set up as their own documentation does
it.
"""

import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import webdataset as stock_webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from data.config import DecodeMode
from data.images.crop_batch import crop_batch
from data.images.decode import Header, replace_bad
from data.images.transforms import Crop, random_crop
from data.loading.loader import training_batches
from data.loading.order import Order
from data.shards.shard_set import Sample, open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.randomness import stream

SIZE, BATCH, SCALE = 224, 64, (0.2, 1.0)
webdataset: Any = stock_webdataset  # its stubs lack what its documentation uses
Interpolation = Literal["bicubic", "bilinear"]
Side = Callable[[int], Iterator[Tensor]]


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """One set of images in every form that a pipeline reads."""

    folder: Path
    """ImageFolder's: one class folder."""
    shards: Path
    """Ours, which webdataset reads too."""
    streamed: Path | None
    """litdata's, where it is installed."""
    count: int
    """How many."""


def prepare(images: list[Path], *, out: Path, count: int) -> ImageFiles:
    """Write ``images``, repeated to ``count``, in every form."""
    folder = out / "folder" / "class"
    folder.mkdir(parents=True)
    for number in range(count):
        shutil.copyfile(images[number % len(images)], folder / f"{number:06d}.jpg")
    names = sorted(folder.iterdir())
    samples = (NewSample(source=path.name, members={"jpg": path.read_bytes()}, label=0) for path in names)
    write_shards(samples, out=out / "shards", classes=("class",), limits=ShardLimits(samples=count // 4 + 1))
    streamed = _optimise(names, out=out / "streamed")
    return ImageFiles(folder=folder.parent, shards=out / "shards", streamed=streamed, count=count)


@dataclass(frozen=True, kw_only=True)
class CropBuilder:
    """What pretraining's builder does, without the mask."""

    decode: DecodeMode
    interpolation: Interpolation

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Make one micro-batch."""

        def draw(sample: Sample, header: Header) -> Crop:
            rng = stream(0, "crop", step, micro_batch, sample.id, sample.repeat)
            return random_crop(header.height, header.width, rng=rng, scale=SCALE)

        options: dict[str, Any] = {"interpolation": self.interpolation, "decode": self.decode}
        decoded = replace_bad(samples, lambda some: crop_batch(some, draw, size=(SIZE, SIZE), **options))
        return {"images": torch.from_numpy(np.stack([pixels for pixels, _ in decoded.values]))}


def ours(images: ImageFiles, *, decode: DecodeMode, interpolation: Interpolation, epochs: int = 1) -> Side:
    """This project's loader; it leaves out what does not fill a last micro-batch."""
    shards = open_shards(images.shards)
    order = Order(shards.sizes, batch_size=BATCH, micro_batch_size=BATCH, seed=0)
    builder = CropBuilder(decode=decode, interpolation=interpolation)

    def batches(workers: int) -> Iterator[Tensor]:
        batches = training_batches(
            shards,
            order,
            builder,
            micro_batches=range(1),
            first_step=0,
            last_step=epochs * order.steps_per_epoch,
            workers=workers,
        )
        return (batch["images"] for batch in batches)

    return batches


def torchvision_folder(images: ImageFiles, *, interpolation: Interpolation, normalised: bool = False) -> Side:
    """torchvision's ImageFolder over PIL in a DataLoader; ``normalised``: floats, as in its examples."""
    dataset = ImageFolder(str(images.folder), _pil_transform(interpolation, normalised=normalised))
    return lambda workers: (
        batch[0] for batch in DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers)
    )


def webdataset_tars(images: ImageFiles, *, interpolation: Interpolation) -> Side:
    """webdataset's own pipeline over PIL."""
    transform = _pil_transform(interpolation, normalised=False)
    tars = sorted(str(path) for path in images.shards.glob("*.tar"))

    def batches(workers: int) -> Iterator[Tensor]:
        samples = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False, seed=0)
        samples = samples.shuffle(1000).decode("pilrgb").to_tuple("jpg", "cls").map_tuple(transform, int)
        samples = samples.batched(BATCH, partial=False)
        return (batch[0] for batch in webdataset.WebLoader(samples, batch_size=None, num_workers=workers))

    return batches


def litdata_stream(images: ImageFiles, *, interpolation: Interpolation) -> Side | None:
    """litdata's pipeline, which decodes with torchvision; None where it is not installed."""
    if images.streamed is None:
        return None
    from litdata import StreamingDataLoader, StreamingDataset  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - no dependency of this project

    modes = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, SCALE, interpolation=modes[interpolation], antialias=True),
            transforms.RandomHorizontalFlip(),
        ]
    )

    class Crops(StreamingDataset):
        def __getitem__(self, index: Any) -> Tensor:
            image = super().__getitem__(index)["image"]
            return transform(image.expand(3, -1, -1))

    def batches(workers: int) -> Iterator[Tensor]:
        dataset = Crops(str(images.streamed), shuffle=True, drop_last=False)
        return iter(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True))

    return batches


def _pil_transform(interpolation: Interpolation, *, normalised: bool) -> Callable[[Image.Image], Tensor]:
    modes = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
    end: list[Any] = [transforms.PILToTensor()]
    if normalised:
        end = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = transforms.RandomResizedCrop(SIZE, SCALE, interpolation=modes[interpolation])
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), *end])


def _optimise(paths: list[Path], *, out: Path) -> Path | None:
    os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # litdata asks PyPI for its newest version
    try:
        from litdata.streaming.cache import Cache  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - no dependency of this project
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = Cache(str(out), chunk_bytes=64 * 2**20)
        for number, path in enumerate(paths):
            cache[number] = {"image": Image.open(io.BytesIO(path.read_bytes()))}
        cache.done()
        cache.merge()
    return out
