"""Cross-entropy over the pixels of label maps, ignored ones left out.

Legend: b images, c classes, h w height and width of the label map.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from finetune.segmentation.heads.atm_loss import full_precision
from finetune.segmentation.void import VOID


def pixel_cross_entropy(logits: Float[Tensor, "b c rows cols"], label_maps: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the mean over all valid pixels of the micro-batch, 0 where there is none; ``logits`` are resized to the label maps."""
    resized = F.interpolate(full_precision(logits), label_maps.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(resized, label_maps.long(), ignore_index=VOID, reduction="sum")
    return total / (label_maps != VOID).sum().clamp(min=1)
