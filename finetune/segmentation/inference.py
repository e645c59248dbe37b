"""Scores of whole images: at once or by overlapping windows, at several sizes, flipped and not.

Windows lie from the top-left corner at equal steps, the last ones drawn back to the border, as in mmsegmentation; where
they overlap their scores are averaged, as are those of all sizes. An image that fits into a window is one window.

Legend: b images, c classes, h w height and width in pixels.
"""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from engine.terms import Size
from finetune.segmentation.augmentation import fitting_size
from finetune.segmentation.config import InferenceConfig

ScoreFunction = Callable[[Tensor], Tensor]
"""Normalised images [b, 3, h, w] of any size to scores [b, c, h, w]."""


def infer(
    score: ScoreFunction, images: Float[Tensor, "b 3 h w"], *, config: InferenceConfig, window: Size
) -> Float[Tensor, "b c h w"]:
    """Score each class at each pixel of normalised ``images``.

    Args:
        score: what segments an image or a window.
        images: of one size, as they are in their files.
        config: sizes, flips and the way.
        window: height and width of a sliding window in pixels.
    """
    size = (images.shape[2], images.shape[3])
    views = [(factor, flip) for factor in config.scales for flip in ((False, True) if config.flip else (False,))]
    scores = [_one_view(score, images, size, factor, flip, config, window) for factor, flip in views]
    return sum(scores[1:], start=scores[0]) / len(scores)


def _one_view(
    score: ScoreFunction, images: Tensor, size: Size, factor: float, flip: bool, config: InferenceConfig, window: Size
) -> Tensor:
    short_side, long_side = config.short_side or min(size), config.long_side if config.short_side else max(size)
    seen = fitting_size(size, short_side=short_side, long_side=long_side, factor=factor)
    if seen != size:
        images = F.interpolate(images, seen, mode="bilinear", align_corners=False, antialias=True)
    images = images.flip(-1) if flip else images
    scores = _slide(score, images, config, window) if config.mode == "slide" else score(images)
    scores = scores.flip(-1) if flip else scores
    return scores if seen == size else F.interpolate(scores, size, mode="bilinear", align_corners=False)


def _slide(score: ScoreFunction, images: Tensor, config: InferenceConfig, window: Size) -> Tensor:
    size = (images.shape[2], images.shape[3])
    step = config.step or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
    total, times = None, images.new_zeros(1, 1, *size)
    for rows, columns in windows(size, window=window, step=step):
        scores = score(images[:, :, rows, columns])
        total = scores.new_zeros(*scores.shape[:2], *size) if total is None else total
        total[:, :, rows, columns] += scores
        times[:, :, rows, columns] += 1
    assert total is not None
    return total / times


def windows(size: Size, *, window: Size, step: Size) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of each window; together they cover an image of ``size``."""
    for rows in _spans(size[0], window[0], step[0]):
        for columns in _spans(size[1], window[1], step[1]):
            yield rows, columns


def _spans(length: int, window: int, step: int) -> list[slice]:
    number = 1 + max(0, -(-(length - window) // step))
    ends = [min(place * step + window, length) for place in range(number)]
    return [slice(max(end - window, 0), end) for end in ends]
