"""What a backbone class brings to be pretrained by masked image modelling: three functions on its own modules.

Each class has one ``Pretrainable`` beside its code, and ``backbones.build.REGISTRY`` lists them.

Legend: b images, k visible units, l units, c channels of the last stage, e channels of the first tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backbones.visible.layout import LayoutSpec


@dataclass(frozen=True, kw_only=True)
class DenseWay:
    """All tokens through the backbone, a learned token where masked."""

    token_dim: Callable[[Any], int]
    """``model`` -> e, the width of the mask token."""
    forward: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    """``(model, images [b 3 h w], visible units [rows cols], mask token [1 1 1 e])`` -> features [b l c] in raster order."""


@dataclass(frozen=True, kw_only=True)
class Pretrainable:
    """How the backbones of one class run on visible tokens."""

    spec: Callable[[Any], LayoutSpec]
    """``model`` -> the sizes that its visible layouts follow from, with the function that builds them."""
    forward: Callable[..., Tensor]
    """``(model, images [b 3 h w], layout, *, attention)`` -> features [b k c] of the visible units, in raster order."""
    dense: DenseWay | None
    """How it runs with mask tokens; None where it cannot."""
    normed: Callable[[Any], bool]
    """``model`` -> whether the features come out of a norm; if not, the decoder starts with one."""
    stacks: bool = False
    """Whether ``forward`` also takes images [s b 3 h w] with a ``VisibleStack``, and returns features [s*b k c]."""
