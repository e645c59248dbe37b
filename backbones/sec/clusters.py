"""Which tokens attend to each other in a network with SEC attention.

Legend: b batch, n tokens, h heads, d channels per head, p q rows and columns of pixels.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from backbones.sec.attention import SecAttention, cluster_slots, num_clusters_for, rotate, similarity
from backbones.sec.network import SecNetwork
from backbones.visible.token_grid import TokenGrid
from backbones.weights.handoff import CONFIG, load_backbone, skeleton
from engine.errors import UserError
from engine.terms import Size


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The clusters of one attention layer for one image."""

    stage: int
    """Its stage, from 1."""
    cluster: Int[np.ndarray, "h rows cols"]
    """The interval of ranks that each token is in, from least to most like the global token."""
    number: int
    """How many there are."""


def load_network(backbone: str, *, img_size: Size, seed: int) -> nn.Module:
    """Load the network of a backbone folder, or make one by timm's name with random weights.

    Raises:
        UserError: there is no such folder and no such architecture.
    """
    if (Path(backbone) / CONFIG).is_file():
        return load_backbone(Path(backbone), img_size=img_size, num_classes=0)
    skeleton(backbone, img_size=img_size, num_classes=0)  # says what is wrong with a name
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return timm.create_model(backbone, img_size=img_size, num_classes=0)


def normalised(photograph: UInt8[np.ndarray, "p q 3"], model: nn.Module) -> Float[Tensor, "1 3 p q"]:
    """Normalise an image of bytes into the batch of one that ``model`` expects."""
    config: Any = model.pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None] / 255 - mean) / std


@torch.no_grad()
def clusters_of(model: nn.Module, images: Tensor) -> list[Clusters]:
    """Observe the clusters of the first image in the last layer of every stage that has more than one.

    The model is in the mode that it was in, and without hooks, also where its forward fails.

    Raises:
        UserError: the network has no such attention.
    """
    clusters_of_stage: dict[int, Clusters] = {}

    def note(stage: int, attn: Any, inputs: tuple[Any, ...]) -> None:
        clusters = _clusters(attn, *inputs, stage=stage)
        if clusters is not None:
            clusters_of_stage[stage] = clusters

    # the stack undoes what is done to the caller's model; a later layer's clusters replace those of its stage
    with ExitStack() as after:
        after.callback(model.train, model.training)
        for stage, layers in enumerate(model.layers if isinstance(model, SecNetwork) else (), start=1):
            for layer in layers.modules():
                if isinstance(layer, SecAttention):
                    after.enter_context(layer.register_forward_pre_hook(partial(note, stage)))
        model.eval()(images)
    if not clusters_of_stage:
        raise UserError("this network has no attention in clusters; choose a network such as secvit_tiny")
    return list(clusters_of_stage.values())


def _clusters(attn: SecAttention, x: Tensor, grid: TokenGrid, turn: Tensor | None, *, stage: int) -> Clusters | None:
    number = attn.num_clusters
    if attn.scale_clusters:
        number = num_clusters_for(grid.num_units, at_224=number)
    number = min(number, x.shape[1])
    if attn.partition is not None or number <= 1:
        return None
    q, k, _ = attn.qkv(x[:1]).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    if turn is not None:
        q, k = rotate(q, turn), rotate(k, turn)
    order = similarity(q, k, global_token=attn.global_token).argsort(dim=-1, stable=True)[0]
    slots = cluster_slots(x.shape[1], number, device=x.device)
    of_rank = slots.slot // (slots.rank.numel() // number)
    cluster = torch.empty_like(order).scatter_(1, order, of_rank.expand_as(order))
    return Clusters(stage=stage, cluster=cluster.unflatten(1, grid.tile).cpu().numpy(), number=number)
