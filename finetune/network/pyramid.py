"""Feature pyramids of any backbone: maps of several strides, the same for an image alone and inside a larger batch.

The images of a micro-batch lie in the top-left corners of one canvas. The backbone runs once per true size, rounded up
to a multiple of 32 pixels and filled with zeros there, so that no padding beyond that reaches a window, a cluster, a
sum or a statistic. A BatchNorm that learns normalises each size by itself; its running statistics are over all of them.

Legend: b images, g images of one group, c channels, h w rows and columns of an image or a map.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from backbones.registry.lookup import backbone_of
from backbones.weights.handoff import skeleton
from engine.distributed.batch_norm import join_records
from engine.errors import UserError
from engine.randomness import torch_seed
from engine.terms import Size
from finetune.network.start import Start, build_network

STRIDES = (4, 8, 16, 32)
MULTIPLE = 32
PROBE_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class MapGroup:
    """The maps of images whose rounded sizes are the same."""

    rows: tuple[int, ...]
    """Their places in the micro-batch."""
    size: Size
    """Height and width that the backbone saw, in pixels: a multiple of 32."""
    maps: list[Float[Tensor, "g _ _ _"]]
    """One a stride, finest first."""


class Pyramid(nn.Module):
    """Maps at some strides of a timm network; the network's parameters keep their names under ``network.``.

    Hierarchical networks give their stages; a plain ViT gives its last map, enlarged and reduced (ViTDet's simple
    pyramid, arXiv 2203.16527). What of the network the maps do not depend on is frozen.

    Args:
        network: made for any image size (:func:`dense_start`), without a classifier.
        strides: pixels per cell of the maps, rising.

    Raises:
        UserError: the network has no map of one of the strides.
    """

    def __init__(self, network: nn.Module, *, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        self.network, self.strides = network, tuple(strides)
        info: list[dict[str, Any]] = list(network.feature_info)  # pyright: ignore[reportArgumentType]
        backbone = backbone_of(network)
        maps = "normed" if backbone is None else backbone.maps
        self.plain = maps == "single"
        if self.plain:
            self.indices = [len(info) - 1]
            widths = [int(info[-1]["num_chs"])] * len(self.strides)
            patch = int(info[-1]["reduction"])
            self.levels = nn.ModuleList(_simple_level(widths[0], patch=patch, stride=stride) for stride in self.strides)
        else:
            last = {int(level["reduction"]): number for number, level in enumerate(info)}
            if missing := [stride for stride in self.strides if stride not in last]:
                raise UserError(
                    f"{type(network).__name__} has maps of strides {', '.join(map(str, last))}, none of {missing[0]}; "
                    "choose another backbone, such as a Swin, or a plain ViT"
                )
            self.indices = [last[stride] for stride in self.strides]
            widths = [int(info[number]["num_chs"]) for number in self.indices]
            self.levels = nn.ModuleList(LayerNorm2d(width) if maps == "sums" else nn.Identity() for width in widths)
        self.channels = tuple(widths)
        _freeze_unused(self)

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes: Sequence[Size] | None = None) -> list[Tensor]:
        """Compute one map [b c h/stride w/stride] a stride; cells beyond an image's rounded size are 0.

        Args:
            images: normalised; an image lies in its top-left corner, what lies beyond it is ignored.
            sizes: true height and width of each image in pixels; None: all fill their canvas.
        """
        if sizes is None and all(side % MULTIPLE == 0 for side in images.shape[-2:]):
            return self._maps(images)
        groups = self.groups(images, sizes)
        if len(groups) == 1 and groups[0].size == tuple(images.shape[-2:]):
            return groups[0].maps
        canvas = tuple(round_up(side) for side in images.shape[-2:])
        maps: list[Tensor] = []
        for level, stride in enumerate(self.strides):
            shape = (len(images), self.channels[level], -(-canvas[0] // stride), -(-canvas[1] // stride))
            whole = groups[0].maps[level].new_zeros(shape)
            for group in groups:
                part = group.maps[level]
                whole[list(group.rows), :, : part.shape[2], : part.shape[3]] = part
            maps.append(whole)
        return maps

    def groups(self, images: Float[Tensor, "b 3 h w"], sizes: Sequence[Size] | None = None) -> list[MapGroup]:
        """Compute the maps by rounded size, as :meth:`forward` without putting them together."""
        members: dict[Size, list[int]] = defaultdict(list)
        true = [(images.shape[-2], images.shape[-1])] * len(images) if sizes is None else list(sizes)
        for row, (height, width) in enumerate(true):
            members[round_up(height), round_up(width)].append(row)
        groups = [
            MapGroup(rows=tuple(rows), size=size, maps=self._maps(cut_out(images, rows=rows, sizes=true, size=size)))
            for size, rows in members.items()
        ]
        if len(groups) > 1:
            join_records(self, last=len(groups))
        return groups

    def _maps(self, images: Float[Tensor, "g 3 h w"]) -> list[Tensor]:
        network: Any = self.network
        maps: list[Tensor] = network.forward_intermediates(
            images, indices=self.indices, norm=self.plain, output_fmt="NCHW", intermediates_only=True, stop_early=True
        )
        return [level(x) for level, x in zip(self.levels, maps * len(self.levels) if self.plain else maps, strict=True)]


def dense_start(start: Start, *, largest: Size | None = None) -> Start:
    """Make ``start`` take images of any size; windows are those of ``largest`` (in pixels) where it is given."""
    backbone = backbone_of(skeleton(start.architecture, **start.model_args))
    if backbone is None:
        return start
    arguments = {**start.model_args, **backbone.any_size}
    if backbone.windows_follow_size and largest is not None:
        arguments["img_size"] = tuple(round_up(side) for side in largest)
    return replace(start, model_args=arguments)


def handed_off(start: Start, *, largest: Size | None = None) -> dict[str, Any]:
    """List the arguments with which timm makes the network of such a pyramid again, for images of its own size."""
    backbone = backbone_of(skeleton(start.architecture, **start.model_args))
    any_size = {} if backbone is None else backbone.any_size
    return {key: value for key, value in dense_start(start, largest=largest).model_args.items() if key not in any_size}


def build_pyramid(
    start: Start,
    *,
    strides: Sequence[int] = STRIDES,
    drop_path: float = 0.0,
    seed: int = 0,
    largest: Size | None = None,
) -> Pyramid:
    """Build the pyramid of a run's backbone with its first weights; what they lack is drawn from ``seed``.

    Raises:
        UserError: the weights do not fit, or the network has no map of one of ``strides``.
    """
    network = build_network(dense_start(start, largest=largest), num_classes=0, drop_path=drop_path, seed=seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(torch_seed(seed, "pyramid"))
        return Pyramid(network, strides=strides)


def round_up(side: int) -> int:
    """Round up to a multiple of 32."""
    return -(-side // MULTIPLE) * MULTIPLE


def cut_out(
    images: Float[Tensor, "b 3 h w"], *, rows: Sequence[int], sizes: Sequence[Size], size: Size
) -> Float[Tensor, "g 3 h2 w2"]:
    """Cut the images ``rows`` out onto canvases of ``size``, zero beyond the true ``sizes`` (height, width)."""
    if len(rows) == len(images) and size == tuple(images.shape[-2:]) and all(sizes[row] == size for row in rows):
        return images
    cut = images.new_zeros((len(rows), images.shape[1], *size))
    for place, row in enumerate(rows):
        height, width = sizes[row]
        cut[place, :, :height, :width] = images[row, :, :height, :width]
    return cut


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep every BatchNorm in ``module`` at its stored statistics, in training too, and its scale and shift fixed."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            layer.eval()
            for parameter in layer.parameters():
                parameter.requires_grad_(False)


def _simple_level(width: int, *, patch: int, stride: int) -> nn.Module:
    """Make what turns a map of stride ``patch`` into one of ``stride``: deconvolutions or pooling, and a norm."""
    factor = patch / stride
    if factor not in (4, 2, 1, 0.5):
        raise UserError(
            f"a plain ViT with patches of {patch} px has no map of stride {stride}; patches of 16 px give strides "
            "4 to 32"
        )
    layers: list[nn.Module] = []
    if factor == 4:
        layers += [nn.ConvTranspose2d(width, width, 2, stride=2), LayerNorm2d(width), nn.GELU()]
    if factor >= 2:
        layers.append(nn.ConvTranspose2d(width, width, 2, stride=2))
    if factor == 0.5:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, LayerNorm2d(width))


def _freeze_unused(pyramid: Pyramid) -> None:
    """Freeze the parameters that no map depends on, such as the norm before a classifier: they never get a gradient."""
    named = [(name, parameter) for name, parameter in pyramid.named_parameters() if parameter.requires_grad]
    training = pyramid.training
    pyramid.eval()
    with torch.enable_grad():
        like = named[0][1]
        probe = torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE, dtype=like.dtype, device=like.device)
        total = torch.stack([x.sum() for x in pyramid(probe)]).sum()
        gradients = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
    pyramid.train(training)
    for (_, parameter), gradient in zip(named, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
