"""Heads that give every pixel a logit for each class: trained with cross-entropy, scored with softmax.

UPerNet (arXiv 1807.10221) and SegFormer's all-MLP decoder (arXiv 2105.15203) are transformers' own modules; UPerNet has
its auxiliary head on the third map. Semantic FPN is in ``semantic_fpn.py``.

Legend: b images, c classes, h w height and width of the scores.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.terms import Size
from finetune.segmentation.heads.atm_loss import full_precision
from finetune.segmentation.heads.semantic_fpn import SemanticFpn
from finetune.segmentation.labels import IGNORE_INDEX

AUXILIARY_WEIGHT = 0.4
AUXILIARY_LEVEL = 2


class PixelHead(nn.Module):
    """A decoder from maps (finest first) to logits, and perhaps one more that only helps training."""

    def __init__(self, decoder: nn.Module, *, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.decoder, self.auxiliary = decoder, auxiliary

    def loss(
        self, features: Sequence[Tensor], label_maps: Int[Tensor, "b h w"], shown: Int[Tensor, "m 2"]
    ) -> dict[str, Tensor]:
        """Compute ``loss``: cross-entropy over valid pixels, plus 0.4 of the auxiliary head's; ``shown`` is unused."""
        loss = pixel_cross_entropy(self.decoder(list(features)), label_maps)
        if self.auxiliary is None:
            return {"loss": loss}
        auxiliary = pixel_cross_entropy(self.auxiliary(list(features)), label_maps)
        return {"loss": loss + AUXILIARY_WEIGHT * auxiliary, "auxiliary_loss": auxiliary.detach()}

    def scores(self, features: Sequence[Tensor], size: Size) -> Float[Tensor, "b c h w"]:
        """Compute each class's probability at each pixel of an image of ``size``."""
        logits = full_precision(self.decoder(list(features)))
        return F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(dim=1)


def uper_net(channels: Sequence[int], *, dim: int, num_classes: int) -> PixelHead:
    """Make UPerNet of ``dim`` channels (published: 512) with its auxiliary head of half as many.

    Pyramid pooling to one place normalises over the micro-batch: it needs at least two images.
    """
    from transformers import UperNetConfig  # noqa: PLC0415  (importing it takes seconds)
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead  # noqa: PLC0415

    options: dict[str, Any] = {"num_labels": num_classes}
    config = UperNetConfig(hidden_size=dim, **options, auxiliary_channels=dim // 2, auxiliary_num_convs=1)
    widths = list(channels)
    return PixelHead(UperNetHead(config, widths), auxiliary=UperNetFCNHead(config, widths, in_index=AUXILIARY_LEVEL))


def all_mlp(channels: Sequence[int], *, dim: int, num_classes: int) -> PixelHead:
    """Make SegFormer's decoder of ``dim`` channels (published: 256 for B0 and B1, else 768)."""
    from transformers import SegformerConfig  # noqa: PLC0415  (importing it takes seconds)
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead  # noqa: PLC0415

    options: dict[str, Any] = {"num_labels": num_classes}
    config = SegformerConfig(
        num_encoder_blocks=len(channels),
        hidden_sizes=list(channels),
        decoder_hidden_size=dim,
        **options,
        depths=[1] * len(channels),
    )
    return PixelHead(SegformerDecodeHead(config))


def semantic_fpn(channels: Sequence[int], *, dim: int, num_classes: int) -> PixelHead:
    """Make Semantic FPN with an FPN of ``dim`` channels (published: 256) and branches of half as many."""
    return PixelHead(SemanticFpn(channels, dim=dim, num_classes=num_classes))


def pixel_cross_entropy(logits: Float[Tensor, "b c rows cols"], label_maps: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Average over all valid pixels, 0 where there is none; ``logits`` are resized to the label maps."""
    resized = F.interpolate(full_precision(logits), label_maps.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(resized, label_maps.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (label_maps != IGNORE_INDEX).sum().clamp(min=1)
