"""SecViT (arXiv 2405.13337): a hierarchical network whose attention is inside clusters of tokens that are alike.

Version 2 is the published code's: 2-D rotary positions, a depthwise convolution in the MLP, a projection before the
classifier. Version 1 is the article's listing, without these. Modules have the names of the published code, but 1x1
convolutions are linear layers, and a stage begins with its downsampling, as in timm's Swin (``backbones.layouts`` maps
its checkpoints). Tokens are ``b n c`` throughout: the same blocks run on all tokens or on the visible ones.

``forward_features`` is the map of stage 4. Projection, norm and classifier are the head, and exist with classes only.

Legend: b batch, n tokens, c channels, y x rows and columns of images, h w of the map at stride 32.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.weight_init import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from backbones.sec_attention import GlobalToken
from backbones.sec_stage import STEMS, SecStage
from backbones.token_grid import UNIT, TokenGrid, dense_grid

CLUSTERS = (32, 8, 2, 1)
"""Clusters of the stages at 224 px; 1 is full attention."""
STRIPES = (1, 2, 7, 7)
"""Widths of CSWin's stripes in the stages."""
PROJECTION = 1024


class SecViT(nn.Module):
    """SecViT of either version, with the papers' ablations.

    Args:
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
    """

    head_layers = ("proj", "norm")
    """Layers that exist for the classifier only: without one they go, with a new one they start anew."""

    def __init__(
        self,
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
        version: Literal[1, 2] = 2,
        rope: bool | None = None,
        stem: Literal["conv", "patch"] = "conv",
        cpe: bool = True,
        lce: bool = True,
        global_token: GlobalToken = "k",
        attention: Literal["sec", "window", "cswin"] = "sec",
        window_size: int = 7,
        scaled_stages: Sequence[int] = (),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dims = [embed_dim * 2**i for i in range(len(depths))] if isinstance(embed_dim, int) else list(embed_dim)
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.version, self.global_pool, self.drop_rate = version, global_pool, drop_rate
        self.grad_checkpointing = False
        self.patch_embed = STEMS[stem](in_chans, dims[0])
        rates = iter(drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths)))
        self.layers = nn.ModuleList(
            SecStage(
                dim,
                in_dim=dims[i - 1] if i else None,
                num_heads=num_heads[i],
                drop_paths=[next(rates) for _ in range(depths[i])],
                rope=version == 2 if rope is None else rope,
                cpe=cpe,
                mlp_ratio=mlp_ratio,
                mlp_conv=version == 2,
                scaled=i in scaled_stages,
                num_clusters=(clusters or CLUSTERS)[i],
                scale_clusters=clusters is None,
                lce=lce,
                global_token=global_token,
                partition=None if attention == "sec" else attention,
                window=STRIPES[i] if attention == "cswin" else window_size,
            )
            for i, dim in enumerate(dims)
        )
        self.num_features = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"layers.{i}"} for i, dim in enumerate(dims)
        ]
        self.reset_classifier(num_classes)
        self.apply(_init_weights)

    def forward(self, x: Float[Tensor, "b 3 y x"]) -> Tensor:
        """Return the logits, or pooled features without a classifier."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        """Return the map of the last stage."""
        return self._maps(x)[-1]

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        """Return the logits of a map, or what the classifier would be given."""
        if self.proj is not None:
            x = self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.norm is not None:
            x = self.norm(x)
        if self.proj is not None:
            x = F.silu(x)
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        if pre_logits or self.head is None:
            return x
        return self.head(F.dropout(x, self.drop_rate, self.training))

    def forward_intermediates(
        self,
        x: Float[Tensor, "b 3 y x"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the maps of the stages ``indices``, and unless ``intermediates_only`` the last map before them.

        Raises:
            ValueError: ``output_fmt`` is not NCHW.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"SecViT's maps have the format NCHW, got output_fmt {output_fmt!r}")
        take, last = feature_take_indices(len(self.layers), indices)  # pyright: ignore[reportArgumentType]
        maps = self._maps(x, num_stages=last + 1 if stop_early else None)
        found = [maps[i] for i in take]
        return found if intermediates_only else (maps[-1], found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps ``indices`` do not need, and return their numbers."""
        take, last = feature_take_indices(len(self.layers), indices)  # pyright: ignore[reportArgumentType]
        self.layers = self.layers[: last + 1]
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last + 1 < len(self.feature_info):
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module | None:
        """Return the classification layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; for 0 classes the whole head goes."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        width = PROJECTION if self.version == 2 else self.num_features
        self.head_hidden_size = width if num_classes else self.num_features
        if not num_classes:
            self.proj = self.norm = self.head = None
            return
        if getattr(self, "norm", None) is None:
            self.proj = nn.Linear(self.num_features, width).apply(_init_weights) if self.version == 2 else None
            self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes).apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns of timm's layer groups."""
        stage = r"^layers\.(\d+)"
        fine = [(stage + r"\.downsample", (0,)), (stage + r"\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": stage if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the branches' scales."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2].startswith("gamma_")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, or everything again."""
        self.grad_checkpointing = enable

    def stage_tokens(
        self, x: Float[Tensor, "b n c"], levels: Sequence[TokenGrid], *, num_stages: int | None = None
    ) -> list[Tensor]:
        """Return the tokens [b n c] after each stage, from those of the stem; ``levels`` are pixels, stem, stages."""
        found: list[Tensor] = []
        for i, stage in enumerate(self.layers[:num_stages]):
            x = stage(x, above=levels[i + 1], grid=levels[i + 2], recompute=self.grad_checkpointing)
            found.append(x)
        return found

    def _maps(self, x: Float[Tensor, "b 3 y x"], *, num_stages: int | None = None) -> list[Tensor]:
        levels = dense_levels(x)
        x = self.patch_embed(x.permute(0, 2, 3, 1).flatten(1, 2), levels)
        tokens = self.stage_tokens(x, levels, num_stages=num_stages)
        return [grid.maps(found) for found, grid in zip(tokens, levels[2:], strict=False)]


def dense_levels(images: Float[Tensor, "b 3 y x"], *, num_levels: int = 6) -> list[TokenGrid]:
    """Return the grids of whole images: pixels, and halves of that (rounded up) down to stride 32."""
    height, width = images.shape[2:]
    num_units = -(-height // UNIT) * -(-width // UNIT)
    sides = [(-(-height // 2**i), -(-width // 2**i)) for i in range(num_levels)]
    return [dense_grid(*pair, num_units=num_units, device=images.device) for pair in sides]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_VARIANTS: dict[str, dict[str, Any]] = {
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

default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj.0",
            "classifier": "head",
        }
        for name in _VARIANTS
    }
)


@register_model
def secvit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return SecViT-T, or its maps with ``features_only``."""
    return _build("secvit_tiny", pretrained, kwargs)


@register_model
def secvit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return SecViT-S, or its maps with ``features_only``."""
    return _build("secvit_small", pretrained, kwargs)


@register_model
def secvit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return SecViT-B ("M" in the published code), or its maps with ``features_only``."""
    return _build("secvit_base", pretrained, kwargs)


@register_model
def secvit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return SecViT-L, or its maps with ``features_only``."""
    return _build("secvit_large", pretrained, kwargs)


def _build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(SecViT, name, pretrained, feature_cfg=features, **{**_VARIANTS[name], **kwargs})
