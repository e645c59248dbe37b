"""SegViT's heads (NeurIPS 2022, arXiv 2210.05844): a cascade of attention-to-mask stages, and Shrunk's upsampling.

Cascade: one stage for each map, the deepest first; each map's own projection, the queries handed on from stage to
stage, the mask logits summed up. Shrunk: learned queries, one for each place of a map of stride 16, gather from the
maps in the order taken, and one stage attends to what they became. Differences from the published code, on purpose:
ignored pixels are ignored (``atm_loss.py``), and masks take the size of the label map or of the image, whatever it is.

Legend: b images, q queries and classes, l places of a map, d channels of the head, h w height and width of the scores.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.terms import Size
from finetune.segmentation.heads.atm import AtmStage, PlainDecoder, Projection, init_decoder
from finetune.segmentation.heads.atm_loss import Masks, atm_losses, full_precision
from finetune.segmentation.heads.pixel_head import pixel_cross_entropy

Loss = Literal["atm", "ce"]
DEPTH = 3
"""Layers of a stage, and of each of Shrunk's decoders."""


class AtmHead(nn.Module):
    """What both heads do with the masks of their stages; ``stages`` is theirs.

    Args:
        dim: channels of the queries.
        num_classes: classes, and so queries.
        loss: atm, or the ablation's pixel cross-entropy on the combined map.
        score_stride: pixels per place at which classes and masks are multiplied for scores; 1 is published.
    """

    def __init__(self, *, dim: int, num_classes: int, loss: Loss, score_stride: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(num_classes, dim)
        self.classes = nn.Linear(dim, num_classes + 1)
        self.loss_name, self.score_stride = loss, score_stride

    def stages(self, features: Sequence[Tensor]) -> list[Masks]:
        """Predict after each stage (or layer) that has a loss, the output last."""
        raise NotImplementedError

    def loss(
        self, features: Sequence[Tensor], label_maps: Int[Tensor, "b h w"], shown: Int[Tensor, "m 2"]
    ) -> dict[str, Tensor]:
        """Compute ``loss`` and its parts for label maps that show the (image, class) pairs ``shown``."""
        stages = self.stages(features)
        if self.loss_name == "atm":
            return atm_losses(stages, label_maps, shown)
        last = stages[-1]
        return {"loss": pixel_cross_entropy(combined(last.classes, last.logits.sigmoid()), label_maps)}

    def scores(self, features: Sequence[Tensor], size: Size) -> Float[Tensor, "b q h w"]:
        """Score each class at each pixel of an image of ``size``: the sum over queries of class and mask shares."""
        last = self.stages(features)[-1]
        grid = [-(-side // self.score_stride) for side in size]
        masks = F.interpolate(full_precision(last.logits), grid, mode="bilinear", align_corners=False)
        scores = combined(full_precision(last.classes), masks.sigmoid())
        return scores if self.score_stride == 1 else F.interpolate(scores, size, mode="bilinear", align_corners=False)

    def masks(self, features: Sequence[Tensor], size: Size) -> Float[Tensor, "b q h w"]:
        """Compute each query's mask in [0, 1] at each pixel of an image of ``size``: its similarity with the places."""
        logits = full_precision(self.stages(features)[-1].logits)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False).sigmoid()

    def _first_queries(self, features: Sequence[Tensor]) -> Float[Tensor, "b q d"]:
        return self.queries.weight.expand(features[0].shape[0], -1, -1)


class SegViTHead(AtmHead):
    """One attention-to-mask stage for each feature map, the deepest first.

    Args:
        channels: of each map, in the order that the backbone gives them (the deepest last).
        dim: channels of the queries; half the backbone's width in the published models.
        num_heads: heads of every attention.
        num_classes: classes, and so queries.
        loss: see `AtmHead`.
        score_stride: see `AtmHead`.
    """

    def __init__(
        self, channels: Sequence[int], *, dim: int, num_heads: int, num_classes: int, loss: Loss, score_stride: int
    ) -> None:
        super().__init__(dim=dim, num_classes=num_classes, loss=loss, score_stride=score_stride)
        deepest_first = channels[::-1]
        self.projections = nn.ModuleList(Projection(width, dim) for width in deepest_first)
        self.cascade = nn.ModuleList(AtmStage(dim, num_heads=num_heads, depth=DEPTH) for _ in deepest_first)
        init_decoder(self)

    def stages(self, features: Sequence[Tensor]) -> list[Masks]:
        """Class logits of each stage, and the sum of its mask logits and those before, at the finer resolution."""
        queries, summed = self._first_queries(features), None
        predictions: list[Masks] = []
        for features_here, project, stage in zip(features[::-1], self.projections, self.cascade, strict=True):
            queries, similarities = stage(queries, project(features_here))[-1]
            logits = similarities.unflatten(-1, features_here.shape[2:])
            summed = logits if summed is None else logits + _resized(summed, logits)
            predictions.append(Masks(classes=self.classes(queries), logits=summed))
        return predictions


class ShrunkHead(AtmHead):
    """Query-based upsampling to stride 16, then one stage all of whose layers have a loss.

    Args:
        channels: of each map, in the order in which the queries gather from them.
        grid: rows and columns of the learned queries: the training crop's over 16; resized for other images.
        stride: pixels per query.
        dim: channels of the queries.
        num_heads: heads of every attention.
        num_classes: classes, and so queries of the last stage.
        loss: see `AtmHead`.
        score_stride: see `AtmHead`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        grid: Size,
        dim: int,
        num_heads: int,
        num_classes: int,
        loss: Loss,
        score_stride: int,
    ) -> None:
        super().__init__(dim=dim, num_classes=num_classes, loss=loss, score_stride=score_stride)
        self.grid = grid
        self.places = nn.Embedding(grid[0] * grid[1], dim)
        self.projections = nn.ModuleList(Projection(width, dim) for width in channels)
        self.upsampling = nn.ModuleList(PlainDecoder(dim, num_heads=num_heads, depth=DEPTH) for _ in channels)
        self.stage = AtmStage(dim, num_heads=num_heads, depth=DEPTH)
        init_decoder(self)

    def stages(self, features: Sequence[Tensor]) -> list[Masks]:
        """Class and mask logits of every layer of the stage; nothing is summed."""
        grid = (features[0].shape[2], features[0].shape[3])
        tokens = self._places(grid).expand(features[0].shape[0], -1, -1)
        for features_here, project, decoder in zip(features, self.projections, self.upsampling, strict=True):
            tokens = decoder(tokens, project(features_here))
        layers = self.stage(self._first_queries(features), tokens)
        return [
            Masks(classes=self.classes(queries), logits=similarities.unflatten(-1, grid))
            for queries, similarities in layers
        ]

    def _places(self, grid: Size) -> Float[Tensor, "1 l d"]:
        """Fit the learned queries to a map of ``grid``, where it is not the one they were made for."""
        places = rearrange(self.places.weight, "(r c) d -> 1 d r c", r=self.grid[0])
        if grid != self.grid:
            places = F.interpolate(places, grid, mode="bicubic", align_corners=False)
        return rearrange(places, "1 d r c -> 1 (r c) d")


def combined(classes: Float[Tensor, "b q q_plus_1"], masks: Float[Tensor, "b q h w"]) -> Float[Tensor, "b c h w"]:
    """Score each real class: the sum over queries of its share in the query times the query's mask."""
    shares = classes.softmax(dim=-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", shares, masks)


def _resized(masks: Float[Tensor, "b q h w"], like: Tensor) -> Tensor:
    if masks.shape[2:] == like.shape[2:]:
        return masks
    return F.interpolate(masks, like.shape[2:], mode="bilinear", align_corners=False)
