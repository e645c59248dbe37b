"""Probes of frozen features: nearest neighbours, a linear classifier, and raw pixels as the floor under both.

Legend: n training samples, m test samples, d features, b images of a batch, h w image height and width in pixels.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import UserError


@torch.no_grad()
def extract_features(
    forward: Callable[[Tensor], Tensor], batches: Iterable[Mapping[str, Any]], device: torch.device | str
) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]:
    """Collect float32 features and labels on the CPU; ``forward`` takes a batch's uint8 images on ``device``."""
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        features.append(forward(batch["images"].to(device, non_blocking=True)).flatten(1).float().cpu())
        labels.append(batch["labels"].cpu())
    if not features:
        raise UserError("a probe needs at least one labelled image, got none")
    return torch.cat(features), torch.cat(labels)


def pixel_features(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 192"]:
    """Shrink images to 8x8 pixels, standardised per image: the floor that a probe reaches without any network.

    Of four ways to scale them this gave the highest kNN on Imagenette at 128 px, 37.9 % (per feature 37.7, by fixed
    mean and deviation 36.5, raw 32.1): a floor should be the hardest one.
    """
    small = F.interpolate(images.float(), size=(8, 8), mode="area").flatten(1)
    return (small - small.mean(1, keepdim=True)) / (small.std(1, keepdim=True) + 1e-6)


@torch.no_grad()
def knn_accuracy(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int64[Tensor, " m"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
    chunk_size: int = 1024,
) -> float:
    """Measure the share of test samples whose k nearest neighbours vote for their class.

    Neighbours are nearest by cosine similarity s and vote with weight exp(s / temperature). Fewer than k training
    samples all vote.
    """
    train_x, test_x = F.normalize(train_x.float(), dim=1), F.normalize(test_x.float(), dim=1)
    right = 0
    for x, y in zip(test_x.split(chunk_size), test_y.split(chunk_size), strict=True):
        similarity, nearest = (x @ train_x.T).topk(min(k, len(train_x)), dim=1)
        # Dividing all weights of a row by the largest changes no vote, and cannot overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(x), num_classes, device=x.device).scatter_add_(1, train_y[nearest], weights)
        right += int((votes.argmax(1) == y).sum())
    return right / len(test_x)


def linear_probe_accuracy(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    test_y: Int64[Tensor, " m"],
    *,
    num_classes: int,
    steps: int = 500,
    batch_size: int = 1024,
    lr: float = 1e-2,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> float:
    """Train BatchNorm (no affine) and one linear layer on fixed features, and measure the test accuracy.

    AdamW with a cosine from ``lr`` to 0. The same arguments give the same figure; the global random state is
    neither read nor moved.
    """
    device = train_x.device
    train_x, test_x = train_x.float(), test_x.float()
    norm = nn.BatchNorm1d(train_x.shape[1], affine=False, eps=1e-6, device=device)
    weight = torch.zeros(num_classes, train_x.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    order, used = torch.randperm(len(train_x), generator=generator), 0
    batch_size = min(batch_size, len(train_x))
    for _ in range(steps):
        if used + batch_size > len(train_x):
            order, used = torch.randperm(len(train_x), generator=generator), 0
        chosen = order[used : used + batch_size].to(device)
        used += batch_size
        loss = F.cross_entropy(F.linear(norm(train_x[chosen]), weight, bias), train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        scores = F.linear(norm.eval()(test_x), weight, bias)
        return int((scores.argmax(1) == test_y).sum()) / len(test_x)
