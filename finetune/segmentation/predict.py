"""What a segmenter says of one image: the class of each pixel, drawn over it; and the masks of SegViT's queries."""

import colorsys
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from engine.recipe import restore
from finetune.network.weights import Trained
from finetune.segmentation.config import SegmentConfig, window_of
from finetune.segmentation.heads.segvit import AtmHead
from finetune.segmentation.inference import infer
from finetune.segmentation.labels import IGNORE_INDEX
from finetune.segmentation.model import Segmenter
from finetune.task import LabelImage, Prediction, Predictor, RgbImage

OPACITY = 0.55
ROW_PX, SWATCH_PX, MARGIN_PX = 14, 10, 4
LEGEND_PX = 150
MOST_MASKS = 8
COLUMNS = 3
"""Tiles beside each other where masks are drawn."""
GOLDEN = 0.618034

LabelMap = npt.NDArray[np.int64]


def label_predictor(trained: Trained) -> Predictor:
    """Make the function from an image to its label map, by the inference of the run's recipe."""
    config, segmenter = restore(SegmentConfig, trained.metadata["recipe"]), cast(Segmenter, trained.network)
    names = trained.class_names

    def predict(image: RgbImage) -> Prediction:
        labels = predict_label_map(segmenter, image, config=config)
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        present = {name: float(share) for name, share in zip(names, shares, strict=True) if share}
        masks = draw_similarities(segmenter, image, config=config, classes=names) if has_queries(segmenter) else None
        return Prediction(
            record={"shares": present},
            overlay=draw_label_map(image, labels, classes=names),
            label_map=as_written(labels, num_classes=len(names)),
            similarities=masks,
        )

    return predict


def as_written(labels: npt.NDArray[np.integer], *, num_classes: int) -> LabelImage:
    """Store a label map in as few bits as its classes need, 8 or 16."""
    return labels.astype(np.uint8 if num_classes <= 2**8 else np.uint16)


@torch.inference_mode()
def predict_label_map(segmenter: Segmenter, image: RgbImage, *, config: SegmentConfig) -> LabelMap:
    """Choose the best class of every pixel [h, w] of an image."""
    normalised = segmenter.pixels(_batch_of(image, segmenter))
    scores = infer(segmenter.scores, normalised, config=config.inference, window=window_of(config))
    return scores.argmax(dim=1)[0].cpu().numpy()


def palette(num_classes: int) -> RgbImage:
    """Choose [num_classes, 3] colours, each far in hue from those before it."""
    colours = [
        colorsys.hsv_to_rgb(GOLDEN * number % 1.0, 0.55 + 0.4 * (number % 3) / 2, 0.95 - 0.3 * (number // 3 % 2))
        for number in range(num_classes)
    ]
    return (255 * np.array(colours)).round().astype(np.uint8)


def draw_label_map(image: RgbImage, label_map: LabelMap, *, classes: Sequence[str]) -> Image.Image:
    """Draw classes [h, w] in colours over an image, ignored pixels left as they are, and the names beside it."""
    colours = palette(len(classes))
    over = image.astype(np.float64)
    valid = label_map != IGNORE_INDEX
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


def has_queries(segmenter: Segmenter) -> bool:
    """Whether the head has class queries, as SegViT's have."""
    return isinstance(segmenter.head, AtmHead)


@torch.inference_mode()
def draw_similarities(
    segmenter: Segmenter, image: RgbImage, *, config: SegmentConfig, classes: Sequence[str]
) -> Image.Image:
    """Draw an image beside the masks of the classes with the largest ones: query-to-place similarities as shares."""
    assert has_queries(segmenter)
    normalised = segmenter.pixels(_batch_of(image, segmenter))
    (masks,) = infer(segmenter.masks, normalised, config=config.inference, window=window_of(config))
    largest = masks.mean(dim=(1, 2)).argsort(descending=True)[:MOST_MASKS].tolist()
    height, width = image.shape[:2]
    rows = -(-(len(largest) + 1) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * width, rows * (height + ROW_PX)), "white")
    tiles = [("image", image), *((classes[n], _grey(masks[n])) for n in largest)]
    draw = ImageDraw.Draw(canvas)
    for place, (name, tile) in enumerate(tiles):
        left, top = place % COLUMNS * width, place // COLUMNS * (height + ROW_PX)
        draw.text((left + MARGIN_PX, top), name, fill="black")
        canvas.paste(Image.fromarray(tile), (left, top + ROW_PX))
    return canvas


def _batch_of(image: RgbImage, segmenter: Segmenter) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return pixels.to(next(segmenter.parameters()).device)


def _grey(mask: Tensor) -> RgbImage:
    return (255 * mask.cpu()).round().to(torch.uint8)[..., None].expand(-1, -1, 3).numpy()
