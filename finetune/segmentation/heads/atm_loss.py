"""SegViT's loss (arXiv 2210.05844, section 3.2): no matching, since query i is class i.

Every query is classified, those of absent classes as "no object"; the masks of the classes present are compared with
their pixels by focal and dice loss. Ignored pixels are left out of all of it: the published code counts them as
background.

Legend: b images, q queries and classes, m masks of present classes, p pixels, h w height and width of the label map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetune.segmentation.labels import IGNORE_INDEX

NO_OBJECT_WEIGHT = 0.1
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
CLASS_WEIGHT, FOCAL_WEIGHT, DICE_WEIGHT = 1.0, 20.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What one stage predicts."""

    classes: Float[Tensor, "b q q_plus_1"]
    """Class logits of each query, the last "no object"."""
    logits: Float[Tensor, "b q rows cols"]
    """Mask logits of each query, at the resolution of the feature map."""


def atm_losses(
    stages: Sequence[Masks], label_maps: Int[Tensor, "b h w"], shown: Int[Tensor, "m 2"]
) -> dict[str, Tensor]:
    """Compute ``loss``, the weighted sum over all stages, and its parts of the last: ``class_loss`` and others.

    Focal and dice losses are means over the masks of this micro-batch; the published code divides by the mean number of
    masks over the devices, so that images with many classes weigh more.

    ``shown`` are the (image, class) pairs that the label maps show, listed where they were read: listing them here
    would wait for the device.
    """
    parts = [_stage_losses(stage, label_maps, shown) for stage in stages]
    weights = {"class_loss": CLASS_WEIGHT, "focal_loss": FOCAL_WEIGHT, "dice_loss": DICE_WEIGHT}
    total = torch.stack([weights[name] * value for part in parts for name, value in part.items()]).sum()
    return {"loss": total, **{name: value.detach() for name, value in parts[-1].items()}}


def _stage_losses(stage: Masks, label_maps: Int[Tensor, "b h w"], shown: Int[Tensor, "m 2"]) -> dict[str, Tensor]:
    images, queries = shown[:, 0], shown[:, 1]
    labels = label_maps[images]
    masks = full_precision(stage.logits)[images, queries][:, None]
    logits = F.interpolate(masks, label_maps.shape[1:], mode="bilinear", align_corners=False)[:, 0].flatten(1)
    valid, targets = (labels != IGNORE_INDEX).flatten(1), (labels == queries[:, None, None]).flatten(1)
    num_masks = max(len(shown), 1)
    return {
        "class_loss": class_loss(full_precision(stage.classes), shown),
        "focal_loss": focal_losses(logits, targets, valid).sum() / num_masks,
        "dice_loss": dice_losses(logits, targets, valid).sum() / num_masks,
    }


def class_loss(logits: Float[Tensor, "b q q_plus_1"], shown: Int[Tensor, "m 2"]) -> Float[Tensor, ""]:
    """Average the cross-entropy of all queries, "no object" weighing a tenth."""
    num_images, num_classes = logits.shape[:2]
    targets = torch.full((num_images, num_classes), num_classes, device=logits.device)
    targets[shown[:, 0], shown[:, 1]] = shown[:, 1].long()
    weights = torch.ones(num_classes + 1, device=logits.device, dtype=logits.dtype)
    weights[-1] = NO_OBJECT_WEIGHT
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), weights)


def focal_losses(
    logits: Float[Tensor, "m p"], targets: Bool[Tensor, "m p"], valid: Bool[Tensor, "m p"]
) -> Float[Tensor, " m"]:
    """Focal loss of each mask (arXiv 1708.02002), the mean over its valid pixels."""
    truth = targets.to(logits.dtype)
    shares = logits.sigmoid()
    wrong = shares * (1 - truth) + (1 - shares) * truth
    alpha = FOCAL_ALPHA * truth + (1 - FOCAL_ALPHA) * (1 - truth)
    losses = alpha * wrong**FOCAL_GAMMA * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (losses * valid).sum(1) / valid.sum(1).clamp(min=1)


def dice_losses(
    logits: Float[Tensor, "m p"], targets: Bool[Tensor, "m p"], valid: Bool[Tensor, "m p"]
) -> Float[Tensor, " m"]:
    """Dice loss of each mask, 1 - (2 sum(p t) + 1) / (sum p + sum t + 1) over its valid pixels."""
    shares, truth = logits.sigmoid() * valid, (targets & valid).to(logits.dtype)
    return 1 - (2 * (shares * truth).sum(1) + 1) / (shares.sum(1) + truth.sum(1) + 1)


def full_precision(x: Tensor) -> Tensor:
    """Convert to at least single precision, whatever autocast made of ``x``."""
    return x if x.dtype == torch.float64 else x.float()
