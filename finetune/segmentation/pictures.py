"""Pictures of what a segmenter sees: a label map over its image with a legend, and the similarities that are SegViT's masks."""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from finetune.segmentation.config import window_of
from finetune.segmentation.heads.segvit import AtmHead
from finetune.segmentation.inference import infer
from finetune.segmentation.model import Segmenter
from finetune.segmentation.trained import TrainedSegmenter
from finetune.segmentation.void import VOID

OPACITY = 0.55
ROW_PX, SWATCH_PX, MARGIN_PX = 14, 10, 4
LEGEND_PX = 150
MOST_MASKS = 8
GOLDEN = 0.618034

Picture = npt.NDArray[np.uint8]
LabelMap = npt.NDArray[np.int64]


def palette(num_classes: int) -> Picture:
    """Return [num_classes, 3] colours, each far in hue from those before it."""
    colours = [
        colorsys.hsv_to_rgb(GOLDEN * number % 1.0, 0.55 + 0.4 * (number % 3) / 2, 0.95 - 0.3 * (number // 3 % 2))
        for number in range(num_classes)
    ]
    return (255 * np.array(colours)).round().astype(np.uint8)


@torch.inference_mode()
def predict_label_map(trained: TrainedSegmenter, image: Picture) -> LabelMap:
    """Return the best class of every pixel [h, w] of an image [h, w, 3], by the inference of the run's recipe."""
    segmenter, config = trained.segmenter, trained.config
    normalised = segmenter.pixels(_batch_of(image, segmenter))
    scores = infer(segmenter.scores, normalised, config=config.inference, window=window_of(config))
    return scores.argmax(dim=1)[0].cpu().numpy()


def draw_label_map(image: Picture, label_map: LabelMap, *, classes: Sequence[str]) -> Image.Image:
    """Return an image [h, w, 3] with its classes [h, w] in colours over it, void left as it is, and the names beside it."""
    colours = palette(len(classes))
    over = image.astype(np.float64)
    valid = label_map != VOID
    over[valid] = (1 - OPACITY) * over[valid] + OPACITY * colours[label_map[valid]]
    shown = np.unique(label_map[valid]).tolist()
    height, width = label_map.shape
    canvas = Image.new("RGB", (width + LEGEND_PX, max(height, ROW_PX * len(shown) + 2 * MARGIN_PX)), "white")
    canvas.paste(Image.fromarray(over.round().astype(np.uint8)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, number in enumerate(shown):
        left, top = width + MARGIN_PX, MARGIN_PX + ROW_PX * row
        draw.rectangle((left, top, left + SWATCH_PX, top + SWATCH_PX), fill=tuple(colours[number].tolist()))
        share = (label_map == number).sum() / valid.sum()
        draw.text((left + SWATCH_PX + MARGIN_PX, top - 1), f"{classes[number]} {100 * share:.1f} %", fill="black")
    return canvas


def has_queries(trained: TrainedSegmenter) -> bool:
    """Return whether the head has class queries, as SegViT's have."""
    return isinstance(trained.segmenter.head, AtmHead)


@torch.inference_mode()
def draw_similarities(trained: TrainedSegmenter, image: Picture) -> Image.Image:
    """Return the image [h, w, 3] beside the masks of the classes with the largest ones: query-to-place similarities as shares."""
    segmenter = trained.segmenter
    assert has_queries(trained)
    normalised = segmenter.pixels(_batch_of(image, segmenter))
    (masks,) = infer(segmenter.masks, normalised, config=trained.config.inference, window=window_of(trained.config))
    largest = masks.mean(dim=(1, 2)).argsort(descending=True)[:MOST_MASKS].tolist()
    height, width = image.shape[:2]
    columns = 3
    rows = -(-(len(largest) + 1) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (height + ROW_PX)), "white")
    tiles = [("image", image), *((trained.classes[n], _grey(masks[n])) for n in largest)]
    draw = ImageDraw.Draw(canvas)
    for place, (name, tile) in enumerate(tiles):
        left, top = place % columns * width, place // columns * (height + ROW_PX)
        draw.text((left + MARGIN_PX, top), name, fill="black")
        canvas.paste(Image.fromarray(tile), (left, top + ROW_PX))
    return canvas


def _batch_of(image: Picture, segmenter: Segmenter) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return pixels.to(next(segmenter.parameters()).device)


def _grey(mask: Tensor) -> Picture:
    return (255 * mask.cpu()).round().to(torch.uint8)[..., None].expand(-1, -1, 3).numpy()
