"""Semantic equitable clustering (arXiv 2405.13337): attention inside groups of tokens that are alike, all of one size.

Tokens are sorted by the cosine between their key and a global token, and cut into intervals of equal length. No place
in the image is involved, so visible tokens need no windows, no grouping and no padding. On a GPU with Triton kernels do
this where the tokens lie (``backbones.kernels.cluster_attention``). Beside it the two ways with windows that the paper
compares with, in a plain form: every score is computed, those between windows are masked.

Legend: b batch, n tokens, c channels, h heads, d channels per head, f = d/2 angles, g clusters, s slots per cluster,
w window shapes, m p rows.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from backbones.kernels.availability import takes_kernels
from backbones.ops.submanifold import depthwise
from backbones.visible.token_grid import TokenGrid

LCE_KERNEL = 5
GlobalToken = Literal["k", "q"]
Partition = Literal["window", "cswin"]
UNITS_AT_224 = 49
"""Units of 32 px in the image size that the published cluster counts are for."""


class SecAttention(nn.Module):
    """Attention inside clusters (or windows, to compare), with a depthwise convolution of the values beside it.

    Args:
        dim: channels.
        num_heads: heads; each of a multiple of 4 channels where positions are rotary.
        num_clusters: clusters; of images of 49 units of 32 px, with ``scale_clusters``.
        scale_clusters: let the number of clusters follow the size of the image.
        lce: add a 5x5 depthwise convolution of the values.
        global_token: what tokens are compared with: the mean key or the mean query.
        partition: windows or stripes in the place of clusters.
        window: side of the windows, width of the stripes.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_clusters: int,
        scale_clusters: bool = True,
        lce: bool = True,
        global_token: GlobalToken = "k",
        partition: Partition | None = None,
        window: int = 7,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_clusters, self.scale_clusters = num_heads, num_clusters, scale_clusters
        self.global_token: GlobalToken = global_token
        self.partition: Partition | None = partition
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lepe = nn.Conv2d(dim, dim, LCE_KERNEL, padding=LCE_KERNEL // 2, groups=dim) if lce else None
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"], grid: TokenGrid, turn: Tensor | None = None) -> Float[Tensor, "b n c"]:
        """Attend among the tokens of a grid; ``turn`` is :func:`rotation` of its coordinates."""
        out, v = self._attend(self.qkv(x).unflatten(-1, (3, self.num_heads, -1)), turn, grid)
        out = out.flatten(2)
        if self.lepe is not None:
            out = out + depthwise(self.lepe, v.flatten(2), grid)
        return self.out_proj(out)

    def _attend(
        self, qkv: Float[Tensor, "b n 3 h d"], turn: Tensor | None, grid: TokenGrid
    ) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]:
        """Attend in whichever way is set and fastest here; the values come out, too, for their other reader."""
        num_clusters = self.num_clusters
        if self.scale_clusters:
            num_clusters = num_clusters_for(grid.num_units, at_224=num_clusters)
        if self.partition is None and min(num_clusters, qkv.shape[1]) > 1 and takes_kernels(qkv):
            # imports Triton, which not every system has
            from backbones.kernels.cluster_attention import fused_cluster_attention  # noqa: PLC0415

            return fused_cluster_attention(qkv, turn, num_clusters=num_clusters, mean_of_keys=self.global_token == "k")
        q, k, v = qkv.unbind(2) if turn is None else turned(qkv, turn)
        v = v.contiguous()  # once, for both of its readers
        if self.partition is not None:
            groups = window_groups(grid.coords, partition=self.partition, side=self.window)
            return partition_attention(q.to(v.dtype), k.to(v.dtype), v, groups=groups), v
        return cluster_attention(q, k, v, num_clusters=num_clusters, global_token=self.global_token), v


def cluster_attention(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b n h d"],
    v: Float[Tensor, "b n h d"],
    *,
    num_clusters: int,
    global_token: GlobalToken = "k",
) -> Float[Tensor, "b n h d"]:
    """Attend inside clusters: softmax(q k^T / sqrt(d)) v over each token's cluster; one cluster is plain attention.

    Clusters follow from ``q`` and ``k`` as they come; attention is computed in the type of ``v``. Where
    ``num_clusters`` does not divide n, cluster sizes differ by one and the free slots are masked.
    """
    num_clusters = min(num_clusters, q.shape[1])
    if num_clusters <= 1:
        q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    likeness = similarity(q, k, global_token=global_token)
    # ONNX has one sort, which is stable
    order = likeness.argsort(dim=-1) if torch.onnx.is_in_onnx_export() else likeness.argsort(dim=-1, stable=True)
    return ordered_attention(q, k, v, order, num_clusters=num_clusters)


def ordered_attention(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b n h d"],
    v: Float[Tensor, "b n h d"],
    order: Int[Tensor, "b h n"],
    *,
    num_clusters: int,
) -> Float[Tensor, "b n h d"]:
    """Attend as :func:`cluster_attention`, inside clusters that are intervals of ``order``, the token of each rank."""
    batch, num_tokens, heads, _ = q.shape
    slots = cluster_slots(num_tokens, num_clusters, device=q.device)
    image, head = (torch.arange(size, device=q.device) for size in (batch, heads))
    sort = ((image[:, None, None] * num_tokens + order) * heads + head[:, None]).flatten(0, 1)  # bh n: rows of b n h
    slot = torch.arange(batch * heads, device=q.device)[:, None] * slots.rank.numel() + slots.slot
    place = torch.empty(sort.numel(), dtype=torch.int64, device=q.device).scatter_(0, sort.flatten(), slot.flatten())
    rows = sort.index_select(1, slots.rank).flatten() if slots.free is not None else sort.flatten()
    # on a CPU one head to a cluster, so that attention's gradients lie as they are read next; GPUs' grids end at 65535
    groups = (batch * heads, num_clusters) if q.is_cuda else (batch * heads * num_clusters, 1)
    q, k, v = (_take(x.to(v.dtype).flatten(0, 2), rows, back=place).view(*groups, -1, x.shape[-1]) for x in (q, k, v))
    seen = None if slots.free is None else ~slots.free.repeat(batch * heads, 1).view(*groups, 1, -1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).flatten(0, 2)
    # the gradient of a free slot is zero, not that of the token whose copy it holds
    out = _take(out, place, back=rows) if slots.free is None else out.index_select(0, place)
    return out.view(batch, num_tokens, heads, -1)


def similarity(
    q: Float[Tensor, "b n h d"], k: Float[Tensor, "b n h d"], *, global_token: GlobalToken
) -> Float[Tensor, "b h n"]:
    """Score each token for the sort: the cosine of its key to its head's mean key (or query), in fp32 or better."""
    device = "cpu" if q.is_meta else q.device.type  # sizes are counted on the meta device, which knows no autocast
    with torch.no_grad(), torch.autocast(device, enabled=False):
        dtype = torch.promote_types(k.dtype, torch.float32)
        keys = k.to(dtype)
        mean = keys.mean(1) if global_token == "k" else q.to(dtype).mean(1)
        # a product of matrices takes 4 times as long on a CPU
        product = (keys * F.normalize(mean, dim=-1)[:, None]).sum(-1)
        return (product / keys.norm(dim=-1).clamp_min(torch.finfo(dtype).tiny)).transpose(1, 2)


@lru_cache(maxsize=4096)
def num_clusters_for(num_units: int, *, at_224: int) -> int:
    """Scale a stage's clusters with the image: from ``at_224`` at 224 px (49 units) to ``num_units`` units of 32 px.

    ``at_224`` times the divisor of ``num_units`` that is nearest, by ratio, to their 49th part; where even that is more
    than 2 times off, times that part rounded.
    """
    if at_224 <= 1:
        return 1
    ratio = max(1.0, num_units / UNITS_AT_224)
    divisors = [m for m in range(1, num_units + 1) if num_units % m == 0]
    best = min(divisors, key=lambda m: abs(math.log(m / ratio)))
    return at_224 * (best if max(best / ratio, ratio / best) <= 2 else round(ratio))


def partition_attention(
    q: Float[Tensor, "b n h d"], k: Float[Tensor, "b n h d"], v: Float[Tensor, "b n h d"], *, groups: Int[Tensor, "w n"]
) -> Float[Tensor, "b n h d"]:
    """Attend between tokens of one group; the heads are shared out among the w ways to group."""
    together: Bool[Tensor, "w n n"] = groups[:, :, None] == groups[:, None, :]
    shares = zip(*(x.transpose(1, 2).tensor_split(len(groups), dim=1) for x in (q, k, v)), together, strict=True)
    return torch.cat([F.scaled_dot_product_attention(*qkv, attn_mask=mask) for *qkv, mask in shares], 1).transpose(1, 2)


def window_groups(coords: Int[Tensor, "n 2"], *, partition: Partition, side: int) -> Int[Tensor, "w n"]:
    """Number each token's window: squares of ``side`` tokens, or (cswin) stripes of ``side`` rows and of columns."""
    row, col = (coords // side).unbind(1)
    return torch.stack([row, col]) if partition == "cswin" else (row * (1 << 20) + col)[None]


def rotation(coords: Int[Tensor, "n 2"], head_dim: int, *, dtype: torch.dtype) -> Float[Tensor, "n f 2"]:
    """Cosines and sines to turn pairs of features by a token's row (first half) and column (second half)."""
    quarter = head_dim // 4
    frequency = 10000.0 ** -torch.linspace(0, 1, quarter, dtype=dtype, device=coords.device)
    angle = (coords.to(dtype)[:, :, None] * frequency).flatten(1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def turned(
    qkv: Float[Tensor, "b n 3 h d"], turn: Float[Tensor, "n f 2"]
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]:
    """Split into queries and keys, their pairs of features turned, in fp32 or better, and the values as they are."""
    parts: Any = _Turned.apply(qkv, turn)
    return parts


class _Turned(torch.autograd.Function):
    """The gradient is turned back straight into its place, where autograd would put three parts together."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(turn)
        ctx.dtype = qkv.dtype
        q, k, v = qkv.unbind(2)
        return rotate(q, turn), rotate(k, turn), v.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (turn,) = ctx.saved_tensors
        grad_q, grad_k, grad_v = grads
        batch, tokens, heads, dim = grad_v.shape
        grad = grad_v.new_empty(batch, tokens, 3, heads, dim, dtype=ctx.dtype)
        back = turn * turn.new_tensor((1, -1))
        grad[:, :, 0], grad[:, :, 1], grad[:, :, 2] = rotate(grad_q, back), rotate(grad_k, back), grad_v
        return grad, None


def rotate(x: Float[Tensor, "b n h d"], turn: Float[Tensor, "n f 2"]) -> Float[Tensor, "b n h d"]:
    """Turn the pairs of features of queries or keys, in fp32 or better."""
    pairs = x.to(turn.dtype).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # neither compilers nor ONNX know complex numbers
        (first, second), (cos, sin) = pairs.unbind(-1), turn[:, None].unbind(-1)
        return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn)[:, None]).flatten(-2)


@dataclass(frozen=True, kw_only=True)
class ClusterSlots:
    """Which rank of the sort is at which slot of which cluster."""

    rank: Int[Tensor, " gs"]
    """Rank at each slot; a free slot repeats one of its cluster."""
    slot: Int[Tensor, " n"]
    """Slot of each rank."""
    free: Bool[Tensor, "g s"] | None
    """Slots that no token has; None where there are none."""


def cluster_slots(num_tokens: int, num_clusters: int, *, device: torch.device) -> ClusterSlots:
    """Cut the ranks of the sort into clusters, intervals whose lengths differ by one at most."""
    ranks = torch.arange(num_tokens, device=device)
    if num_tokens % num_clusters == 0:
        return ClusterSlots(rank=ranks, slot=ranks, free=None)
    size = -(-num_tokens // num_clusters)
    starts = torch.arange(num_clusters + 1, device=device) * num_tokens // num_clusters
    at_slot = starts[:-1, None] + torch.arange(size, device=device)
    last = starts[1:, None] - 1
    cluster = torch.searchsorted(starts[1:], ranks, right=True)
    return ClusterSlots(
        rank=torch.minimum(at_slot, last).flatten(), slot=cluster * size + ranks - starts[cluster], free=at_slot > last
    )


def _take(x: Float[Tensor, "m d"], rows: Int[Tensor, " p"], *, back: Int[Tensor, " m"]) -> Float[Tensor, "p d"]:
    taken: Any = _Rows.apply(x, rows, back)
    return taken


class _Rows(torch.autograd.Function):
    """Take rows; the gradient takes rows, too, where autograd would add into zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0].contiguous().index_select(0, back), None, None
