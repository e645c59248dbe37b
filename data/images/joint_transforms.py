"""Crops, scales, flips and colours an image together with its boxes, masks and label map, by torchvision's transforms.

torchvision draws from torch's global generator. Each sample's transform runs with that generator set from the sample's
key and put back afterwards, so the result is a pure function of (seed, step, micro_batch, sample).

Legend: b images, n objects of one image, h w height and width of the result in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.images.annotations import read_label_map, read_objects
from data.images.decode import MAX_PIXELS, decode_rgb, read_header
from data.shards.shard_set import Sample
from engine.errors import UserError
from engine.randomness import torch_seed
from engine.terms import Size

VOID = 255
GREY = 127

Annotated = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JointAugmentation:
    """How annotated training images are changed."""

    size: Size
    """Height and width of the result in pixels."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Least and largest factor on the size that just fits into the result; the image is then cropped or padded."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric: float = 0.0
    """Probability of each change of brightness, contrast, saturation and hue."""
    min_side_px: float = 1.0
    """Objects whose box is smaller than this in either direction are dropped."""

    def __post_init__(self) -> None:
        if min(self.size) < 1 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"expected a positive size and two rising positive scales, got {self.size}, {self.scale}")


class _AtLeastOnePixel:
    """Mixed into a torchvision resize: a side of a very elongated image that would round to 0 becomes 1 pixel."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size to resize to."""
        params: dict[str, Any] = cast(Any, super()).make_params(flat_inputs)
        return {**params, "size": tuple(max(1, side) for side in params["size"])}


class ScaleJitter(_AtLeastOnePixel, v2.ScaleJitter):
    """torchvision's, for images however elongated."""


class RandomShortestSize(_AtLeastOnePixel, v2.RandomShortestSize):
    """torchvision's, for images however elongated."""


def joint_transform(augment: JointAugmentation) -> Callable[[Annotated], Annotated]:
    """Jitter the scale, crop or pad to ``size``, flip and colour; the padding is grey, void in label maps."""
    fill = {tv_tensors.Image: GREY, tv_tensors.Mask: VOID}
    return v2.Compose(
        [
            ScaleJitter(augment.size, scale_range=augment.scale, antialias=True),
            v2.RandomCrop(augment.size, pad_if_needed=True, fill=fill),  # pyright: ignore[reportArgumentType]
            v2.RandomHorizontalFlip(augment.flip),
            photometric(augment.photometric),
            v2.ClampBoundingBoxes(),
        ]
    )


def photometric(probability: float) -> v2.Transform:
    """Change brightness, contrast, saturation and hue, each with this probability; channels keep their order.

    The ranges are those of torchvision's ``RandomPhotometricDistort``, which also permutes the channels.
    """
    changes: tuple[dict[str, tuple[float, float]], ...] = (
        {"brightness": (0.875, 1.125)},
        {"contrast": (0.5, 1.5)},
        {"saturation": (0.5, 1.5)},
        {"hue": (-0.05, 0.05)},
    )
    return v2.Compose([v2.RandomApply([v2.ColorJitter(**change)], p=probability) for change in changes])


def read_annotated(sample: Sample, *, max_pixels: int = MAX_PIXELS, masks: bool = True) -> Annotated:
    """Decode a sample's image and read what is drawn into it, as torchvision's tensors.

    That is ``image`` [3, h, w] and, where it has them, ``boxes`` [n, 4] (left, top, right, bottom), ``labels``,
    ``crowd``, ``areas`` [n], ``masks`` [n, h, w] and ``label_map`` [h, w]. No object has a mask unless ``masks``.

    Raises:
        BadImage: the image or what is drawn into it cannot be read.
    """
    pixels = decode_rgb(sample.image, header=read_header(sample.image, max_pixels=max_pixels))
    size = (pixels.shape[0], pixels.shape[1])
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    annotated: Annotated = {"image": tv_tensors.Image(image)}
    if "json" in sample.members:
        name = f"sample {sample.id} ({sample.key})"
        objects = read_objects(sample.members["json"], size=size, masks=masks, sample=name)
        annotated["boxes"] = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
            torch.from_numpy(objects.boxes), format="XYXY", canvas_size=size
        )
        annotated |= {"labels": torch.from_numpy(objects.categories), "crowd": torch.from_numpy(objects.crowd)}
        annotated["areas"] = torch.from_numpy(objects.areas)
        if objects.masks is not None:
            annotated["masks"] = tv_tensors.Mask(torch.from_numpy(objects.masks.view(np.uint8)))
    if "seg.png" in sample.members:
        label_map = read_label_map(sample.members["seg.png"], size=size)
        annotated["label_map"] = tv_tensors.Mask(torch.from_numpy(label_map))
    return annotated


def transformed(
    annotated: Annotated, transform: Callable[[Annotated], Annotated], *, seed: int, key: tuple[int | str, ...]
) -> Annotated:
    """Apply ``transform`` with the randomness of ``key``; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(torch_seed(seed, "joint", *key))
        return transform(annotated)


def without_degenerate(annotated: Annotated, *, min_side_px: float) -> Annotated:
    """Drop objects that a crop left with hardly a box or with no pixel of their mask; the tensors become plain ones."""
    plain = {name: value.as_subclass(torch.Tensor) for name, value in annotated.items()}
    if "boxes" not in plain:
        return plain
    boxes = plain["boxes"]
    is_visible = (boxes[:, 2:] - boxes[:, :2] >= min_side_px).all(dim=1)
    if "masks" in plain:
        plain["masks"] = plain["masks"] == 1  # the padding is not 1
        is_visible &= plain["masks"].flatten(1).any(dim=1)
    of_objects = {"boxes", "labels", "crowd", "areas", "masks"}
    return {name: value[is_visible] if name in of_objects else value for name, value in plain.items()}
