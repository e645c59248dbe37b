"""XFormer (Samsung, arXiv 2207.07268): a mobile hybrid of inverted residuals and attention that is linear in tokens.

This is a RECONSTRUCTION. There is no official code, and the published text leaves out block counts, stage widths,
kernel sizes and the attention's formula (see ``backbones.xformer.xfa``). The stated figures (embedding widths 144, 192,
240, patches of 2x2, SiLU, 5.5 M parameters) are those of MobileViT-S; with this paper's blocks in its skeleton the
network has 5.476 M parameters and 1.75 GMACs at 256 px, and fits the published size of a detector too. Other layouts
come near, and the numbers cannot tell the attention formulas apart: weights and accuracies of the authors are not to be
expected.

Any image size will do; one whose last grids are odd is padded inside, and padding counts as zero.

Legend: b batch, c d channels, h w rows and columns of a grid (c2 h2 w2: those of what is returned), s sequences,
n tokens of one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers.classifier import ClassifierHead
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.squeeze_excite import SqueezeExcite
from timm.layers.weight_init import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from backbones.recompute.blocks import run_block
from backbones.registry.sizes import check_choice
from backbones.xformer.xfa import FORMULAS, Formula
from engine.errors import UserError
from engine.terms import Size

WIDTHS = (32, 64, 96, 128, 160)
EMBED_DIMS = (144, 192, 240)
DEPTHS = (2, 4, 3)
MLP_RATIOS = (2.0, 2.0, 3.0)
QKV_DIM = 96
EXPANSION = 4
PATCH = 2
REFERENCE_SIZE = 256
"""Image side in pixels at which XFA's sums have the scale of the written formulas."""

Map = Float[Tensor, "b c h w"]
NextMap = Float[Tensor, "b c2 h2 w2"]


class XFormer(nn.Module):
    """The reconstructed network: five stages, attention in the last three.

    Args:
        attention: which reading of XFA, or ``softmax``.
        img_size: size that pretraining lays masks out for, in pixels; the network takes any.
        widths: channels of the five stages.
        embed_dims: channels inside the attention of stages 3 to 5.
        depths: attention layers of stages 3 to 5.
        mlp_ratios: hidden over embedding width of their MLPs.
        qkv_dim: channels of queries, keys and values.

    Raises:
        UserError: sizes are not given for every stage, or there is no such attention.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | Sequence[int] = REFERENCE_SIZE,
        attention: Formula = "r1",
        stem_width: int = 16,
        widths: Sequence[int] = WIDTHS,
        embed_dims: Sequence[int] = EMBED_DIMS,
        depths: Sequence[int] = DEPTHS,
        mlp_ratios: Sequence[float] = MLP_RATIOS,
        qkv_dim: int = QKV_DIM,
        num_features: int = 640,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes("", WIDTHS, widths=widths)
        _check_sizes(" with attention", DEPTHS, embed_dims=embed_dims, depths=depths, mlp_ratios=mlp_ratios)
        check_choice(FORMULAS, attention=attention)
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.stem = _conv(in_chans, stem_width, 3, stride=2)
        # the rate of dropped branches rises over the attention layers of all stages, not within each
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        inputs = (stem_width, *widths)
        stages: list[nn.Module] = [_conv_stage(inputs[0], widths[0], stride=1, depth=1)]
        stages.append(_conv_stage(inputs[1], widths[1], stride=2, depth=3))
        for i, depth in enumerate(depths):
            # a token attends to those at its own place in the 2x2 patches: as many as patches at stride 8, 16 or 32
            unit = XfUnit(
                widths[2 + i],
                embed_dims[i],
                mlp_ratio=mlp_ratios[i],
                qkv_dim=qkv_dim,
                attention=attention,
                reference_tokens=(REFERENCE_SIZE // (8 * 2**i) // PATCH) ** 2,
                drop_paths=[next(drop_paths) for _ in range(depth)],
            )
            stages.append(nn.Sequential(Mv3(inputs[2 + i], widths[2 + i], stride=2), unit))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"stages.{i}"} for i, width in enumerate(widths)
        ]
        self.final_conv = _conv(widths[-1], num_features, 1)
        self.head = ClassifierHead(num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.apply(_init_weights)

    def forward(self, x: Map) -> Tensor:
        """Classify images: logits, or pooled features where there is no classifier."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Map) -> NextMap:
        """Encode images as one map, at stride 32, before pooling."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.final_conv(x)

    def forward_head(self, x: Map, pre_logits: bool = False) -> Tensor:
        """Pool a map and classify it; with ``pre_logits``, stop at what the classifier would be given."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Map,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Collect the maps after the stages ``indices``, and unless ``intermediates_only`` the last map before them.

        Raises:
            UserError: ``output_fmt`` is not NCHW.
        """
        if output_fmt != "NCHW":
            raise UserError(f"XFormer's maps have the format NCHW, got output_fmt {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        maps: list[Tensor] = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                break
            x = stage(x)
            if i in take:
                maps.append(x)
        if intermediates_only:
            return maps
        # the last convolution belongs to the last stage: there is nothing for it where the network ended early
        whole = not stop_early or last + 1 == len(self.stages)
        return self.final_conv(x) if whole else x, maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the maps ``indices`` do not need, and return their numbers."""
        take, last = feature_take_indices(len(self.stages), indices)
        pruned = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        if prune_head or pruned:
            self.final_conv = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        """Find the classification layer, as timm asks for it."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classification layer by a fresh one, or by none for 0 classes."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Name the layer groups, in timm's patterns of parameter names."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^final_conv", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Keep weight decay off XFA's temperatures, by name: they are scales, like those of norms."""
        return {name for name, _ in self.named_parameters() if name.endswith("temperature")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of attention layers for the backward pass, or everything again.

        Convolutions keep theirs: recomputing would move their batch statistics twice.
        """
        for module in self.modules():
            if isinstance(module, XfLayer):
                module.recompute = enable


class Mv3(nn.Module):
    """MobileNetV3's block: 1x1 expand, 3x3 depthwise, squeeze-excitation, 1x1 project; residual where it can be."""

    def __init__(self, in_chs: int, out_chs: int, *, stride: int) -> None:
        super().__init__()
        hidden = EXPANSION * in_chs
        self.expand = _conv(in_chs, hidden, 1)
        self.depthwise = _conv(hidden, hidden, 3, stride=stride, groups=hidden)
        self.se = SqueezeExcite(hidden, rd_channels=hidden // 4, act_layer=nn.SiLU)
        self.project = _conv(hidden, out_chs, 1, act=False)
        self.residual = stride == 1 and in_chs == out_chs

    def forward(self, x: Map) -> NextMap:
        """Run the block on a map; one of stride 2 halves its sides."""
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class XfUnit(nn.Module):
    """Convolutions around attention between the tokens that have the same place in their 2x2 patches."""

    def __init__(
        self,
        chs: int,
        dim: int,
        *,
        mlp_ratio: float,
        qkv_dim: int,
        attention: Formula,
        reference_tokens: int,
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        self.local = _conv(chs, chs, 3)
        self.embed = nn.Conv2d(chs, dim, 1, bias=False)
        sizes = {"mlp_ratio": mlp_ratio, "qkv_dim": qkv_dim, "reference_tokens": reference_tokens}
        self.layers = nn.ModuleList(
            XfLayer(dim, attention=attention, drop_path=drop_path, **sizes) for drop_path in drop_paths
        )
        self.norm = nn.LayerNorm(dim)
        self.project = _conv(dim, chs, 1)
        self.fuse = _conv(2 * chs, chs, 3)

    def forward(self, x: Map) -> Map:
        """Let the places of a map attend to each other, keeping its shape."""
        y = self.embed(self.local(x))
        size = (y.shape[2], y.shape[3])
        tokens, real = unfold(y)
        for layer in self.layers:
            tokens = layer(tokens, real)
        y = self.project(fold(self.norm(tokens), size))
        return self.fuse(torch.cat([x, y], dim=1))


class XfLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(
        self, dim: int, *, mlp_ratio: float, qkv_dim: int, attention: Formula, reference_tokens: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * qkv_dim)
        self.core = FORMULAS[attention](qkv_dim, reference_tokens=reference_tokens)
        self.proj = nn.Linear(qkv_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.recompute = False

    def forward(self, x: Float[Tensor, "s n d"], real: Bool[Tensor, "#s n"] | None = None) -> Float[Tensor, "s n d"]:
        """Run the layer on sequences; ``real`` is False at padding."""
        return self.with_core(x, lambda q, k, v: self.core(q, k, v, real))

    def with_core(
        self, x: Float[Tensor, "s n d"], core: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "s n d"]:
        """Run the layer with another attention, ``core``, between the projections."""
        return run_block(self, x, core, forward=_with_core, recompute=self.recompute)


def _with_core(layer: Any, x: Tensor, core: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    x = x + layer.drop_path(layer.proj(core(*layer.qkv(layer.norm1(x)).chunk(3, dim=-1))))
    return x + layer.drop_path(layer.mlp(layer.norm2(x)))


def unfold(x: Map) -> tuple[Float[Tensor, "s n c"], Bool[Tensor, "#s n"] | None]:
    """Cut a map into one sequence per place in a 2x2 patch; where an odd grid was padded, say which tokens are real."""
    height, width = x.shape[2:]
    bottom, right = height % PATCH, width % PATCH
    tokens = _sequences(F.pad(x, (0, right, 0, bottom)))
    if not bottom and not right:
        return tokens, None
    real = F.pad(x.new_ones(1, 1, height, width), (0, right, 0, bottom))
    return tokens, _sequences(real).squeeze(-1).bool().repeat(len(x), 1)


def fold(tokens: Float[Tensor, "s n c"], size: Size) -> Map:
    """Undo ``unfold``: put the sequences back into their map of ``size``."""
    rows, cols = -(-size[0] // PATCH), -(-size[1] // PATCH)
    x = tokens.unflatten(1, (rows, cols)).unflatten(0, (-1, PATCH, PATCH))  # b ph pw rows cols c
    x = x.permute(0, 5, 3, 1, 4, 2).flatten(4, 5).flatten(2, 3)  # -> b c (rows ph) (cols pw)
    return x[:, :, : size[0], : size[1]]


def _sequences(x: Map) -> Float[Tensor, "s n c"]:
    x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # b c rows ph cols pw
    return x.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(0, 2)  # -> (b ph pw) (rows cols) c


def _check_sizes(kind: str, published: Sequence[int], **sizes: Sequence[int | float]) -> None:
    """Refuse sizes that are not positive, or not as many as the published network has for its stages of a ``kind``."""
    for name, values in sizes.items():
        if len(values) != len(published) or min(values) <= 0:
            raise UserError(
                f"{name} takes {len(published)} numbers above 0, one for each stage{kind}, got {len(values)}: "
                f"{tuple(values)}"
            )


def _conv(in_chs: int, out_chs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Module:
    return ConvNormAct(in_chs, out_chs, kernel, stride=stride, groups=groups, act_layer=nn.SiLU, apply_act=act)


def _conv_stage(in_chs: int, out_chs: int, *, stride: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(Mv3(out_chs if i else in_chs, out_chs, stride=1 if i else stride) for i in range(depth)))


def _init_weights(module: nn.Module) -> None:
    """Draw convolutions by the outputs a weight reaches, Linear normal 0.02; XFA's kernels keep torch's defaults."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear) and module.bias is not None:
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
