"""Attention between visible tokens that share a window: one function, several implementations that agree.

Only here do groups, slots and padding exist. Tokens are gathered head by head into the slots of their group, so that an
image is m = h * G independent matrices of scores, one per head and group, whatever kernel computes them.

Legend: b batch, n tokens, h heads, d channels per head, G groups, g slots per group, t rows of a bias table.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from backbones.kernels.availability import has_kernels
from backbones.visible.layout import Rule
from backbones.visible.stacking import PlanStack
from backbones.visible.window_layout import GroupPlan, pair_rows

logger = logging.getLogger(__name__)

Implementation = Literal["auto", "reference", "sdpa", "fused"]
Plan = GroupPlan | PlanStack


def window_attention(
    qkv: Float[Tensor, "b n 3 h d"],
    table: Float[Tensor, "t h"],
    plan: Plan,
    *,
    scale: float,
    implementation: Implementation = "auto",
) -> Float[Tensor, "b n h*d"]:
    """Let each token attend to the tokens of its window: softmax(scale q k^T + bias) v.

    Args:
        qkv: queries, keys and values of the visible tokens.
        table: bias per relative position and head.
        plan: which tokens share a window, for the whole batch or for each of its equal parts; on the device of ``qkv``.
        scale: factor on the products.
        implementation: ``reference`` is plain operations; ``sdpa`` is PyTorch's fused attention; ``fused`` is our
            Triton kernel, which copies nothing into groups; ``auto`` is the kernel for plans by the rule "tiles" and
            ``sdpa`` for others on GPUs, and ``reference`` elsewhere, since PyTorch's CPU kernel has no gradient for a
            bias.
    """
    first = plan.parts[0] if isinstance(plan, PlanStack) else plan
    attend = IMPLEMENTATIONS[chosen := _chosen(implementation, qkv, first)]
    if isinstance(plan, GroupPlan):
        return attend(qkv, table, plan, scale).flatten(2)
    if chosen == "fused" and plan.joint is not None:
        return attend(qkv, table, plan.joint, scale).flatten(2)
    parts = zip(qkv.chunk(len(plan.parts)), plan.parts, strict=True)
    return torch.cat([attend(x, table, one, scale) for x, one in parts]).flatten(2)


def usable_rule(rule: Rule, device: torch.device) -> Rule:
    """Choose the rule to plan for ``device`` by: groups in the place of tiles where the fused kernel cannot run."""
    return "optimal" if rule == "tiles" and not has_kernels(device) else rule


def _chosen(implementation: Implementation, qkv: Tensor, plan: GroupPlan) -> Implementation:
    """Say what ``auto`` stands for: the fused kernel only where a plan was made for it, and has no rows per pair."""
    if implementation == "auto":
        if not qkv.is_cuda:
            return "reference"
        has_kernel = has_kernels(qkv.device) and qkv.dtype.itemsize <= torch.float32.itemsize
        return "fused" if has_kernel and not len(plan.bias_index) else "sdpa"
    return "sdpa" if implementation == "fused" and not _has_triton() else implementation


@cache
def _has_triton() -> bool:
    """Look whether Triton is installed, which has no packages for macOS and Windows; say once if not."""
    installed = find_spec("triton") is not None
    if not installed:
        logger.warning("Triton is not installed, so window attention runs as sdpa instead of fused")
    return installed


def pair_bias(table: Float[Tensor, "t h"], index: Int[Tensor, "G g g"]) -> Float[Tensor, "m g g"]:
    """Look up the bias of every pair of slots: a row of ``table``, or minus infinity for index t."""
    num_heads, size = table.shape[1], index.shape[-1]
    rows = torch.cat([table, table.new_full((1, num_heads), -torch.inf)]).mT
    # gather's backward (scatter_add) takes a ninth of the time of embedding's or indexing's on a CPU
    return rows.gather(1, index.flatten().expand(num_heads, -1)).view(-1, size, size)


def _bias_index(plan: GroupPlan) -> Int[Tensor, "G g g"]:
    """The row of the bias table per pair of slots, made here where the plan has none (rule "tiles")."""
    if len(plan.bias_index):
        return plan.bias_index
    shape = (plan.num_groups, plan.group_size)
    return pair_rows(plan.number.view(shape), plan.window.view(shape), masked=plan.masked)


def _reference(qkv: Tensor, table: Tensor, plan: GroupPlan, scale: float) -> Tensor:
    q, k, v = _into_slots(qkv, plan)
    scores = (q * scale) @ k.mT + pair_bias(table, _bias_index(plan))
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return _out_of_slots(weights.to(v.dtype) @ v, plan)


def _sdpa(qkv: Tensor, table: Tensor, plan: GroupPlan, scale: float) -> Tensor:
    q, k, v = _into_slots(qkv, plan)
    bias = pair_bias(table, _bias_index(plan)).to(q.dtype).expand(len(q), -1, -1, -1)
    return _out_of_slots(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale), plan)


def _fused(qkv: Tensor, table: Tensor, plan: GroupPlan, scale: float) -> Tensor:
    from backbones.kernels.window_attention import fused_attention  # noqa: PLC0415 # imports Triton, which not every system has

    return fused_attention(qkv, table, plan, scale)


IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, GroupPlan, float], Tensor]] = {
    "reference": _reference,
    "sdpa": _sdpa,
    "fused": _fused,
}


def _into_slots(qkv: Float[Tensor, "b n 3 h d"], plan: GroupPlan) -> tuple[Tensor, ...]:
    """Put the tokens' queries, keys and values into slots, [b, m, g, d] each."""
    if plan.identity:
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)
    slots: Any = _IntoSlots.apply(qkv, plan.token, plan.slot)
    return tuple(x.unflatten(2, (plan.num_groups, plan.group_size)).flatten(1, 2) for x in slots)


def _out_of_slots(x: Float[Tensor, "b m g d"], plan: GroupPlan) -> Float[Tensor, "b n h d"]:
    """Take each token's result out of its slot."""
    if plan.identity:
        return x.transpose(1, 2)
    heads = x.unflatten(1, (-1, plan.num_groups)).flatten(2, 3)
    out: Any = _OutOfSlots.apply(heads, plan.token, plan.slot)
    return out


class _IntoSlots(torch.autograd.Function):
    """b n 3 h d -> 3 of b h (G g) d. The gradient is a gather, too, where autograd would add into zeros.

    A padding slot holds a copy of token 0, whose gradient is left out: it is zero, since nobody else sees the slot and
    what it computes is dropped.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, token: Tensor, slot: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(slot)
        return tuple(x.transpose(1, 2).index_select(2, token) for x in qkv.unbind(2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        return torch.stack([grad.transpose(1, 2).index_select(1, slot) for grad in grads], dim=2), None, None


class _OutOfSlots(torch.autograd.Function):
    """b h (G g) d -> b n h d. The gradient of a padding slot is that of token 0, and reaches nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(token)
        return x.transpose(1, 2).index_select(1, slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (token,) = ctx.saved_tensors
        return grads[0].transpose(1, 2).index_select(2, token), None, None
