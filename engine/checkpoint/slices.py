"""A slice of a named tensor: what a checkpoint is made of."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["weight", "exp_avg", "exp_avg_sq", "ema", "buffer"]


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """Consecutive elements of one flattened tensor."""

    kind: Kind
    """What the tensor is: an fp32 master weight, an AdamW moment, an averaged weight or a buffer."""
    name: str
    """The parameter's or buffer's name in the unwrapped model."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: int
    """Index of the slice's first element in the flattened whole tensor."""
    values: Tensor
    """The elements, one-dimensional: a view of the live state on any device."""
