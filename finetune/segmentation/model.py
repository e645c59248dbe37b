"""The network of a segmentation run: raw pixels, a backbone's maps, a head.

Legend: b images, c classes, h w height and width in pixels, m (image, class) pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backbones.weights.handoff import skeleton
from engine.errors import UserError
from engine.pixels import Pixels
from engine.randomness import torch_seed
from engine.recipe import restore
from engine.terms import Size
from finetune.network.pyramid import MULTIPLE, Pyramid, build_pyramid, dense_start, freeze_batch_norm
from finetune.network.start import Start, build_network
from finetune.network.weights import start_from
from finetune.segmentation.config import SegmentConfig, SegmenterConfig
from finetune.segmentation.heads.pixel_head import all_mlp, semantic_fpn, uper_net
from finetune.segmentation.heads.segvit import AtmHead, SegViTHead, ShrunkHead
from finetune.segmentation.vit_layers import VitLayers

FEWEST_FOR_BATCH_NORM = 8
HEAD_WIDTH = 32
PIXEL_HEADS = {"uper_net": (uper_net, 512), "semantic_fpn": (semantic_fpn, 256), "all_mlp": (all_mlp, 256)}
"""What makes each head, and its published width."""


@runtime_checkable
class Head(Protocol):
    """What turns maps into a loss or into scores."""

    def loss(self, features: Sequence[Tensor], label_maps: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """Give ``loss`` and what else is worth a line in the report."""
        ...

    def scores(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """Score each class at each pixel of images of ``size``."""
        ...


class Segmenter(nn.Module):
    """Images to a loss, or to a score for each class and pixel; the backbone is ``features.network``."""

    def __init__(self, features: VitLayers | Pyramid, head: nn.Module, *, pixels: Pixels) -> None:
        super().__init__()
        self.features, self.head, self.pixels = features, head, pixels

    def forward(
        self, images: UInt8[Tensor, "b 3 h w"], label_maps: Int[Tensor, "b h w"], shown: Int[Tensor, "m 2"]
    ) -> dict[str, Tensor]:
        """Compute ``loss`` and its parts.

        Args:
            images: raw pixels.
            label_maps: classes from 0, and void.
            shown: the (image, class) pairs that the label maps show.
        """
        return self._head.loss(self.features(self.pixels(images)), label_maps, shown)

    def scores(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Score each class at each pixel of normalised ``images`` of any size."""
        return self._at_own_size(images, self._head.scores)

    def masks(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Compute each class query's mask in [0, 1] at each pixel of normalised ``images``; of SegViT's heads only."""
        assert isinstance(self.head, AtmHead)
        return self._at_own_size(images, self.head.masks)

    def set_score_stride(self, stride: int) -> None:
        """Choose at which pixels SegViT's heads multiply classes and masks; other heads have no such choice."""
        if isinstance(self.head, AtmHead):
            self.head.score_stride = stride

    def _at_own_size(self, images: Tensor, read: Callable[[Sequence[Tensor], Size], Tensor]) -> Tensor:
        """Apply ``read`` to the maps of padded images, and cut the padding off."""
        size = images.shape[2:]
        rows, columns = self.features.patch if isinstance(self.features, VitLayers) else (MULTIPLE, MULTIPLE)
        images = F.pad(images, (0, -size[1] % columns, 0, -size[0] % rows))
        return read(self.features(images), (images.shape[2], images.shape[3]))[:, :, : size[0], : size[1]]

    @property
    def _head(self) -> Head:
        return cast(Head, self.head)


class Scores(nn.Module):
    """A segmenter's scores of raw pixels, whole images at once."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Give each class's score at each pixel."""
        segmenter = cast(Segmenter, self.segmenter)
        return segmenter.scores(segmenter.pixels(images))


def build_model(config: SegmentConfig, *, start: Start, num_classes: int) -> Segmenter:
    """Build the network of a recipe with its first weights, a function of ``run.seed`` alone.

    Raises:
        UserError: the head cannot take what the backbone has; says which setting to change.
    """
    features = build_features(config, start=start)
    if config.data.micro_batch_size < FEWEST_FOR_BATCH_NORM:
        freeze_batch_norm(features.network)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(torch_seed(config.run.seed, "head"))
        head = build_head(config.segmenter, features=features, crop=config.augment.crop, num_classes=num_classes)
    return Segmenter(features, head, pixels=Pixels(start.mean, start.std))


def build_bare(metadata: Mapping[str, Any]) -> Segmenter:
    """Build the network that a checkpoint describes with random weights, to load others into."""
    config = restore(SegmentConfig, metadata["recipe"])
    config = replace(config, backbone=replace(config.backbone, drop_path=0.0))
    return build_model(config, start=start_from(metadata), num_classes=metadata["num_classes"])


def backbone_state(segmenter_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pick the weights of the backbone alone, under its own names, from those of a segmenter."""
    prefix = "features.network."
    return {name.removeprefix(prefix): x for name, x in segmenter_state.items() if name.startswith(prefix)}


def build_features(config: SegmentConfig, *, start: Start) -> VitLayers | Pyramid:
    """Build the backbone with the maps that the head takes: layers of a plain ViT for SegViT, else a pyramid."""
    segmenter, backbone = config.segmenter, config.backbone
    model: Any = skeleton(start.architecture, **start.model_args)
    if segmenter.head == "segvit" and isinstance(model, VisionTransformer):
        if segmenter.strides is not None:
            raise UserError(
                "segmenter.strides: SegViT takes layers of a plain ViT; leave it out, or use segmenter.layers"
            )
        network: Any = build_network(
            dense_start(start), num_classes=0, drop_path=backbone.drop_path, seed=config.run.seed
        )
        depth = len(network.blocks)  # which the defaults of layers and shrink-block are shares of
        shrinks = segmenter.shrink != "none"
        return VitLayers(
            network,
            layers=_layers(segmenter, depth=depth),
            class_token=segmenter.class_token == "keep",
            shrink_block=_shrink_block(segmenter, depth=depth) if shrinks else None,
            shrink_of=segmenter.shrink_of,
        )
    if segmenter.layers is not None or segmenter.shrink != "none":
        raise UserError(
            f"segmenter.layers and segmenter.shrink need a plain ViT, and {start.architecture} is none; use "
            "segmenter.strides"
        )
    # without the cascade SegViT's head takes the deepest map alone, and no others need be computed
    strides = segmenter.strides or ((8, 16, 32) if segmenter.head == "segvit" else (4, 8, 16, 32))
    return build_pyramid(
        start,
        strides=strides[-1:] if segmenter.head == "segvit" and not segmenter.cascade else strides,
        drop_path=backbone.drop_path,
        seed=config.run.seed,
        largest=config.augment.crop,
    )


def build_head(config: SegmenterConfig, *, features: VitLayers | Pyramid, crop: Size, num_classes: int) -> nn.Module:
    """Build the head for the maps of ``features``.

    Raises:
        UserError: its heads do not divide its width, or it needs four maps.
    """
    channels = features.channels
    if config.head != "segvit":
        make, published = PIXEL_HEADS[config.head]
        if len(channels) != 4:
            raise UserError(f"{config.head} takes four maps, segmenter.strides asks for {len(channels)}")
        return make(channels, dim=config.dim or published, num_classes=num_classes)
    dim = config.dim or max(channels) // 2
    num_heads = config.num_heads or max(1, dim // HEAD_WIDTH)
    if dim % num_heads:
        raise UserError(f"segmenter.num-heads {num_heads} does not divide the head's {dim} channels; set segmenter.dim")
    options: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "num_classes": num_classes}
    options |= {"loss": config.loss, "score_stride": config.score_stride}
    if config.shrink == "qd+qu" and isinstance(features, VitLayers):
        rows, columns = (-(-side // patch) for side, patch in zip(crop, features.patch, strict=True))
        return ShrunkHead(channels, grid=(rows, columns), **options)
    return SegViTHead(channels, **options)


def _layers(config: SegmenterConfig, *, depth: int) -> tuple[int, ...]:
    if config.layers is not None:
        layers = config.layers
    elif config.shrink == "qd+qu":
        layers = (depth // 3 - 1, depth - 1)
    else:
        layers = (depth // 3 - 1, 2 * depth // 3 - 1, depth - 1)
    return layers if config.cascade else layers[-1:]


def _shrink_block(config: SegmenterConfig, *, depth: int) -> int:
    return depth // 3 if config.shrink_block is None else config.shrink_block
