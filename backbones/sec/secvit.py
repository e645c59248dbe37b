"""SecViT (arXiv 2405.13337): a hierarchical network whose attention is inside clusters of tokens that are alike.

Version 2 is the published code's: 2-D rotary positions, a depthwise convolution in the MLP, a projection before the
classifier. Version 1 is the article's listing, without these. Modules have the names of the published code, but 1x1
convolutions are linear layers, and a stage begins with its downsampling, as in timm's Swin
(``backbones.weights.key_names`` maps its checkpoints).

``forward_features`` is the map of stage 4. Projection, norm and classifier are the head, and exist with classes only.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import nn

from backbones.config import SecConfig
from backbones.registry.backbone import Arguments
from backbones.registry.sizes import NUM_STAGES, check_choice, check_stages, doubled
from backbones.sec.attention import GlobalToken
from backbones.sec.network import SecNetwork, create_by
from backbones.sec.stage import STEMS, ConvDownsample, sec_stages
from backbones.sec.visible import SEC, without_windows
from engine.errors import UserError

CLUSTERS = (32, 8, 2, 1)
"""Clusters of the stages at 224 px; 1 is full attention."""
STRIPES = (1, 2, 7, 7)
"""Widths of CSWin's stripes in the stages."""
Version = Literal[1, 2]
Attention = Literal["sec", "window", "cswin"]


def make_secvit(
    *,
    in_chans: int = 3,
    num_classes: int = 1000,
    global_pool: str = "avg",
    img_size: int | Sequence[int] = 224,
    embed_dim: int | Sequence[int] = 64,
    depths: Sequence[int] = (2, 2, 9, 2),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    mlp_ratio: float = 3.0,
    clusters: Sequence[int] | None = None,
    version: Version = 2,
    rope: bool | None = None,
    stem: Literal["conv", "patch"] = "conv",
    cpe: bool = True,
    lce: bool = True,
    global_token: GlobalToken = "k",
    attention: Attention = "sec",
    window_size: int = 7,
    scaled_stages: Sequence[int] = (),
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> SecNetwork:
    """Make SecViT of either version, with the papers' ablations.

    Args:
        in_chans: channels of the images.
        num_classes: classes, 0 for no head.
        global_pool: ``avg``, or nothing for a map.
        img_size: size that pretraining lays masks out for, in pixels; the network takes any.
        embed_dim: channels of the stages; one number doubles from stage to stage.
        depths: blocks of the stages.
        num_heads: heads of the stages.
        mlp_ratio: hidden over outer width of the MLPs.
        clusters: clusters of the stages, whatever the image; None is 32, 8, 2 and 1 at 224 px and follows its size.
        version: 2 or 1 of the published models.
        rope: rotary positions; None as the version has them.
        stem: four 3x3 convolutions, or one 4x4 patch embedding.
        cpe: 3x3 depthwise convolution at the start of a block.
        lce: 5x5 depthwise convolution of the values.
        global_token: what tokens are compared with: the mean key or the mean query.
        attention: clusters, windows, or CSWin's stripes.
        window_size: side of the windows.
        scaled_stages: the stages (from 0) whose branches have a learned scale, 1e-6 at first.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Raises:
        UserError: sizes are not given for four stages, or do not go together, or an option has no such value.
    """
    dims = doubled(embed_dim) if isinstance(embed_dim, int) else tuple(embed_dim)
    check_stages(embed_dim=dims)
    check_choice(get_args(Version), version=version)
    check_choice(STEMS, stem=stem)
    check_choice(get_args(GlobalToken), global_token=global_token)
    _check_attention(attention, num_heads=num_heads, window_size=window_size)
    for stage in scaled_stages:
        check_choice(range(NUM_STAGES), scaled_stages=stage)
    # the versions differ in rotary positions, the convolution in the MLP and, below, the head
    stages = sec_stages(
        dims,
        depths=depths,
        num_heads=num_heads,
        clusters=clusters,
        published_clusters=CLUSTERS,
        drop_path_rate=drop_path_rate,
        downsample=ConvDownsample,
        scaled=scaled_stages,
        windows=STRIPES if attention == "cswin" else (window_size,) * NUM_STAGES,
        rope=version == 2 if rope is None else rope,
        cpe=cpe,
        mlp_ratio=mlp_ratio,
        mlp_conv=version == 2,
        lce=lce,
        global_token=global_token,
        partition=None if attention == "sec" else attention,
    )
    return SecNetwork(
        patch_embed=STEMS[stem](in_chans, dims[0]),
        stages=stages,
        dims=dims,
        img_size=img_size,
        head="projected" if version == 2 else "normed",
        num_classes=num_classes,
        global_pool=global_pool,
        drop_rate=drop_rate,
    )


def _check_attention(attention: Attention, *, num_heads: Sequence[int], window_size: int) -> None:
    check_choice(get_args(Attention), attention=attention)
    if attention == "cswin" and min(num_heads) < 2:
        raise UserError(f"CSWin's heads are shared out among rows and columns: num_heads from 2 on, got {num_heads}")
    if window_size < 1:
        raise UserError(f"window_size is a number from 1 on, got {window_size}")


VARIANTS: dict[str, dict[str, Any]] = {
    "secvit_tiny": {"depths": (2, 2, 9, 2), "drop_path_rate": 0.1},
    "secvit_small": {"depths": (3, 4, 18, 4), "drop_path_rate": 0.15},
    "secvit_base": {
        "embed_dim": (80, 160, 320, 512),
        "depths": (4, 8, 26, 8),
        "num_heads": (5, 5, 10, 16),
        "scaled_stages": (2, 3),
        "drop_path_rate": 0.4,
    },
    "secvit_large": {
        "embed_dim": (112, 224, 448, 640),
        "depths": (4, 8, 26, 8),
        "num_heads": (7, 7, 14, 20),
        "scaled_stages": (2, 3),
        "drop_path_rate": 0.5,
    },
}


def create(name: str, pretrained: bool = False, **model_args: Any) -> nn.Module:
    """Make the network of one of the published sizes, or its maps with ``features_only``."""
    return create_by(make_secvit, name, pretrained, **{**VARIANTS[name], **model_args})


def _arguments(sizes: Arguments) -> Arguments:
    return sizes if sizes.get("attention") == "window" else without_windows(sizes)


BACKBONE = replace(SEC, arguments=_arguments, sec_options=frozenset(vars(SecConfig())))
