"""What the programs know of the networks of one class: one value beside their code.

Three functions on a network's own modules let it be pretrained by masked image modelling; the rest says how it takes
the sizes of a config and how its maps serve detection and segmentation. ``backbones.registry.zoo`` lists their modules.

Legend: b images, k visible units, l units, c channels of the last stage, e channels of the first tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from backbones.visible.layout import LayoutSpec

Arguments = dict[str, Any]
Maps = Literal["sums", "normed", "single"]


@dataclass(frozen=True, kw_only=True)
class DenseForward:
    """All tokens through the backbone, a learned token where masked."""

    token_dim: Callable[[Any], int]
    """``model`` -> e, the width of the mask token."""
    forward: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    """``(model, images [b 3 h w], visible units [rows cols], mask token [1 1 1 e])`` -> features [b l c] in raster
    order."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The networks of one class."""

    network: type[nn.Module]
    """The class. Architectures that its module registers with timm have the sizes below."""
    spec: Callable[[Any], LayoutSpec]
    """``model`` -> the sizes that its visible layouts follow from, with the function that builds them."""
    forward: Callable[..., Tensor]
    """``(model, images [b 3 h w], layout, *, attention)`` -> features [b k c] of the visible units, in raster order."""
    dense: DenseForward | None = None
    """How it runs with mask tokens; None where it cannot."""
    stacks: bool = False
    """Whether ``forward`` also takes images [s b 3 h w] with a ``VisibleStack``, and returns features [s*b k c]."""
    ends_in_norm: Callable[[Any], bool] = lambda _: True
    """``model`` -> whether the features come out of a norm; if not, the decoder starts with one."""
    first_weights: Callable[[Any], None] | None = None
    """Sets, in place, what a network's first weights for pretraining have beside those of ``init_mim``."""
    arguments: Callable[[Arguments], Arguments] = dict
    """A config's sizes (img_size, window_size, embed_dim, depths, num_heads, options of ``backbone.sec``) -> those that
    timm takes; refuses (UserError) what the networks have not."""
    sec_options: frozenset[str] = frozenset()
    """The options of ``backbone.sec`` that the networks have."""
    maps: Maps = "sums"
    """What a feature pyramid is made of: stages that end in a residual sum, and get norms of their own; stages that
    need none; or, without stages, a single map."""
    any_size: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments with which timm makes a network for images of any size."""
    windows_follow_size: bool = False
    """Whether the windows of a network for any size are those of the largest image."""
