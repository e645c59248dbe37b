"""The network that the SEC backbones share, made of their parts, with timm's contract.

Tokens are ``b n c`` throughout: the same parts run on all tokens or on the visible ones
(``backbones.visible.token_grid``).

Legend: b batch, n tokens, c channels, y x rows and columns of images, h w of the map at the last stride.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.weight_init import trunc_normal_
from timm.models import build_model_with_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from backbones.visible.token_grid import UNIT, TokenGrid, dense_grid
from engine.errors import UserError

PROJECTION = 1024
M = TypeVar("M", bound=nn.Module)
HeadKind = Literal["projected", "normed", "plain"]


class SecNetwork(nn.Module):
    """A stem, stages and a head.

    Args:
        patch_embed: makes the first stage's tokens of pixels; called with these and the grids of all levels.
        stages: called with tokens, the grid above, their own grid, and whether to recompute blocks.
        dims: channels of the stages.
        img_size: size that pretraining lays masks out for, in pixels; the network takes any.
        head: what stands before the classifier: a projection to 1024 channels, a BatchNorm and Swish; a BatchNorm;
            nothing, and then the features end with a LayerNorm.
        num_classes: classes, 0 for no head.
        global_pool: ``avg``, or nothing for a map.
        drop_rate: dropout before the classifier.

    Raises:
        UserError: there is no such pooling.
    """

    def __init__(
        self,
        *,
        patch_embed: nn.Module,
        stages: Sequence[nn.Module],
        dims: Sequence[int],
        head: HeadKind,
        img_size: int | Sequence[int] = 224,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.head_kind, self.drop_rate = head, drop_rate
        self.head_layers = {"projected": ("proj", "norm"), "normed": ("norm",), "plain": ()}[head]
        """Layers that exist for the classifier only: without one they go, with a new one they start anew."""
        self.grad_checkpointing = False
        self.patch_embed = patch_embed
        self.layers = nn.ModuleList(stages)
        self.num_features = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"layers.{i}"} for i, dim in enumerate(dims)
        ]
        self.proj: nn.Module | None = None
        self.norm: nn.Module | None = nn.LayerNorm(dims[-1]) if head == "plain" else None
        self.reset_classifier(num_classes, global_pool)
        init_weights(self)

    def forward(self, x: Float[Tensor, "b 3 y x"]) -> Tensor:
        """Classify images into logits, or without a classifier pool their features."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b c h w"]:
        """Encode whole images into the map of the last stage."""
        levels = dense_levels(x)
        return levels[len(self.layers) + 1].maps(self.features(dense_pixels(x), levels))

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Tensor:
        """Classify a map into logits, [b classes] or, without pooling, [b h w classes].

        With ``pre_logits`` or without a classifier: what the classifier would be given.
        """
        if self.proj is not None:
            x = self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.norm is not None and self.head_kind != "plain":
            x = self.norm(x)
        if self.proj is not None:
            x = F.silu(x)
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        if pre_logits or self.head is None:
            return x
        x = x if x.ndim == 2 else x.permute(0, 2, 3, 1)
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
        """Encode into the maps of the stages ``indices``, and unless ``intermediates_only`` the last map before them.

        Raises:
            UserError: ``output_fmt`` is not NCHW.
        """
        if output_fmt != "NCHW":
            raise UserError(f"maps have the format NCHW, got output_fmt {output_fmt!r}")
        take, last = feature_take_indices(len(self.layers), indices)  # pyright: ignore[reportArgumentType]
        levels = dense_levels(x)
        tokens = self.stage_tokens(
            self.patch_embed(dense_pixels(x), levels), levels, num_stages=last + 1 if stop_early else None
        )
        # a norm that ends the features belongs to the last stage alone, which may not have been run
        whole = len(tokens) == len(self.layers)
        final = self.final(tokens[-1]) if whole else tokens[-1]
        maps = [final if norm and whole and i == len(tokens) - 1 else tokens[i] for i in take]
        # levels 0 and 1 are pixels and the stem's half resolution
        outputs = [levels[i + 2].maps(x) for i, x in zip(take, maps, strict=True)]
        return outputs if intermediates_only else (levels[len(tokens) + 1].maps(final), outputs)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps ``indices`` do not need, and return their numbers."""
        take, last = feature_take_indices(len(self.layers), indices)  # pyright: ignore[reportArgumentType]
        self.layers = self.layers[: last + 1]
        self.num_features = self.feature_info[last]["num_chs"]
        pruned = last + 1 < len(self.feature_info)
        if prune_head or pruned:
            self.reset_classifier(0, "")
        if prune_norm or pruned:
            self.norm = None
        return take

    def get_classifier(self) -> nn.Module | None:
        """Classification layer, for timm; None where the network has none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; for 0 classes the whole head goes."""
        if global_pool not in ("avg", "", None):
            raise UserError(f"global_pool is avg, or nothing for a map, got {global_pool!r}")
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = next(self.patch_embed.parameters())
        width = PROJECTION if self.head_kind == "projected" else self.num_features
        self.head_hidden_size = width if num_classes else self.num_features
        if not num_classes:
            for name in self.head_layers:
                setattr(self, name, None)
            self.head = None
            return
        if self.head_layers and self.norm is None:
            self.norm = nn.BatchNorm2d(width).to(like)
            if "proj" in self.head_layers:
                self.proj = init_weights(nn.Linear(self.num_features, width)).to(like)
        self.head = init_weights(nn.Linear(width, num_classes)).to(like)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns to group layers by for timm, as for learning rates that differ by depth."""
        stage = r"^layers\.(\d+)"
        fine = [(stage + r"\.downsample", (0,)), (stage + r"\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": stage if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters to keep out of weight decay: the scales of the branches."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2].startswith("gamma_")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, or everything again."""
        self.grad_checkpointing = enable

    def features(self, pixels: Float[Tensor, "b n 3"], levels: Sequence[TokenGrid]) -> Float[Tensor, "b k c"]:
        """Encode pixels into the last stage's tokens; ``levels`` are the grids of pixels, stem and stages."""
        return self.final(self.stage_tokens(self.patch_embed(pixels, levels), levels)[-1])

    def final(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """End the features: a plain head's LayerNorm of the last stage's tokens, otherwise nothing."""
        return self.norm(x) if self.norm is not None and self.head_kind == "plain" else x

    def stage_tokens(
        self, x: Float[Tensor, "b n c"], levels: Sequence[TokenGrid], *, num_stages: int | None = None
    ) -> list[Tensor]:
        """Run the stages on the stem's tokens and keep the tokens [b n c] after each."""
        outputs: list[Tensor] = []
        for i, stage in enumerate(self.layers[:num_stages]):
            x = stage(x, above=levels[i + 1], grid=levels[i + 2], recompute=self.grad_checkpointing)
            outputs.append(x)
        return outputs


def dense_levels(images: Float[Tensor, "b 3 y x"], *, num_levels: int = 6) -> list[TokenGrid]:
    """Lay out the grids of whole images: pixels, and halves of that (rounded up) down to stride 32."""
    height, width = images.shape[2:]
    num_units = -(-height // UNIT) * -(-width // UNIT)
    sides = [(-(-height // 2**i), -(-width // 2**i)) for i in range(num_levels)]
    return [dense_grid(*pair, num_units=num_units, device=images.device) for pair in sides]


def dense_pixels(images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b n 3"]:
    """Line up the pixels of whole images in raster order."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def init_weights(module: M) -> M:
    """Set linear and convolution weights normal 0.02 and biases 0, in place, and return the module."""
    return module.apply(_init_weights)


def create_by(make: Callable[..., SecNetwork], name: str, pretrained: bool = False, **model_args: Any) -> nn.Module:
    """Make what timm's ``create_model`` returns: the network of ``make``, or its maps with ``features_only``."""
    maker: Any = make
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(maker, name, pretrained, feature_cfg=features, **model_args)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
