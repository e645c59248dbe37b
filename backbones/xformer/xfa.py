"""Cross feature attention (XFA), the attention of XFormer (arXiv 2207.07268), as far as its formula can be recovered.

No code was published and the formulas could not be found. What is known: queries and keys are normalised along the
features; two scores are made of the keys, by one kernel along the tokens (context) and one along the features
(feature); a learned temperature takes the place of the softmax; the map lies along the features, and the cost is linear
in the tokens. ``R1`` fits all of that and is the default, ``R2`` and ``R3`` fit most of it; ``Softmax`` is ordinary
attention between the same projections, to compare with. Nothing is claimed about which of them the authors used.

The sum over tokens grows with their number. Here it is scaled to ``reference_tokens`` (our addition): at that number
the formulas are as written, and other image sizes keep the scale.

A token that is not ``real`` (padding of an odd grid, or masked) counts as zero to its neighbours and adds to no sum.

Legend: s sequences, n tokens, d channels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Formula = Literal["r1", "r2", "r3", "softmax"]
Tokens = Float[Tensor, "s n d"]
Real = Bool[Tensor, "#s n"] | None


class R1(nn.Module):
    """lambda * q (k_c^T (k_f * v)): k_c by a depthwise kernel along the tokens, k_f one number per token."""

    def __init__(self, dim: int, *, reference_tokens: int) -> None:
        super().__init__()
        self.context = _context_kernel(dim)
        self.feature = nn.Linear(dim, 1, bias=False)
        self.temperature = nn.Parameter(torch.ones(1))
        self.reference_tokens = reference_tokens

    def forward(self, q: Tokens, k: Tokens, v: Tokens, real: Real = None) -> Tokens:
        """Mix the values by the context and feature scores of the keys, read out by each token's query."""
        q, k = F.normalize(q, dim=-1), _unit_keys(k, real)
        scores = self.context(k.mT) @ (self.feature(k) * v)  # s d d
        return q @ (scores * _scale(self, k, real))


class R2(nn.Module):
    """lambda * v (k_c^T k_f): both scores are maps, and the queries stay unused."""

    def __init__(self, dim: int, *, reference_tokens: int) -> None:
        super().__init__()
        self.context = _context_kernel(dim)
        self.feature = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.temperature = nn.Parameter(torch.ones(1))
        self.reference_tokens = reference_tokens

    def forward(self, q: Tokens, k: Tokens, v: Tokens, real: Real = None) -> Tokens:
        """Mix each token's own value along the features, by the scores of all keys."""
        k = _unit_keys(k, real)
        feature = self.feature(k.flatten(0, 1).unsqueeze(1)).view_as(k)
        scores = self.context(k.mT) @ feature  # s d d
        return v @ (scores * _scale(self, k, real))


class R3(nn.Module):
    """lambda * (q . c) (k . w_f) * v with one context vector c = sum_n (k_n . w_c) k_n: of rank one, d numbers wide."""

    def __init__(self, dim: int, *, reference_tokens: int) -> None:
        super().__init__()
        self.context = nn.Linear(dim, 1, bias=False)
        self.feature = nn.Linear(dim, 1, bias=False)
        self.temperature = nn.Parameter(torch.ones(1))
        self.reference_tokens = reference_tokens

    def forward(self, q: Tokens, k: Tokens, v: Tokens, real: Real = None) -> Tokens:
        """Weigh each token's own value by its query against the context, and by its feature score."""
        q, k = F.normalize(q, dim=-1), _unit_keys(k, real)
        context = self.context(k).mT @ k  # s 1 d
        return q @ (context * _scale(self, k, real)).mT * self.feature(k) * v


class Softmax(nn.Module):
    """softmax(q k^T / sqrt(d)) v: quadratic in the tokens."""

    def __init__(self, dim: int, *, reference_tokens: int) -> None:
        super().__init__()

    def forward(self, q: Tokens, k: Tokens, v: Tokens, real: Real = None) -> Tokens:
        """Attend to all real tokens, as ordinary attention does."""
        if real is None:
            return F.scaled_dot_product_attention(q, k, v)
        seen = real | ~real.any(-1, keepdim=True)  # a sequence without real tokens must stay finite
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen.unsqueeze(-2))


FORMULAS: dict[str, type[nn.Module]] = {"r1": R1, "r2": R2, "r3": R3, "softmax": Softmax}


def _context_kernel(dim: int) -> nn.Conv1d:
    return nn.Conv1d(dim, dim, 3, padding=1, groups=dim, bias=False)


def _unit_keys(k: Tokens, real: Real) -> Tokens:
    """Normalise the keys: to length 1, and to 0 where a token is not real."""
    k = F.normalize(k, dim=-1)
    return k if real is None else k * real.unsqueeze(-1)


def _scale(core: R1 | R2 | R3, k: Tokens, real: Real) -> Float[Tensor, "#s 1 1"]:
    """Scale the temperature to the image: times the tokens that the formula was written for over those there are."""
    if real is None:
        return (core.temperature * core.reference_tokens / k.shape[1]).view(1, 1, 1)
    count = real.sum(-1).clamp(min=1)
    return (core.temperature * core.reference_tokens / count).view(-1, 1, 1)
