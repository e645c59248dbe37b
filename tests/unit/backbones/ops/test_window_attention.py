"""Implementations of attention in groups agree with plain attention, values and gradients."""

import numpy as np
import pytest
import torch

from backbones.ops.window_attention import pair_bias, window_attention
from backbones.visible.layout import LayoutSpec, build_layout
from backbones.visible.window_layout import StageSpec, window_stages

WINDOW, HEADS, DIM, BATCH = 3, 2, 4, 3
IMPLEMENTATIONS = ("reference", "sdpa")  # fused has a file of its own: it takes no float64


def plan_and_coords(*, rule, units=(4, 5), shift=1, seed=0, window=WINDOW):
    stage = StageSpec(grid=(2 * units[0], 2 * units[1]), window=(window, window), shifts=((shift, shift),), channels=8)
    last = StageSpec(grid=units, window=(1, 1), shifts=((0, 0),), channels=8)
    spec = LayoutSpec(
        img_size=(8 * units[0], 8 * units[1]), patch=(4, 4), unit=(8, 8), stages=(stage, last), build=window_stages
    )
    visible = np.random.default_rng(seed).random(units) < 0.5
    layout = build_layout(spec, visible, rule=rule).to("cpu")
    return layout.stages[0].plans[0], layout.stages[0].coords


def plain(qkv, table, coords, *, shift, scale, window=WINDOW):
    """Attention over all tokens at once, with a bias of minus infinity between windows."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    ids = torch.div(coords - shift, window, rounding_mode="floor")
    together = (ids[:, None] == ids[None, :]).all(-1)
    delta = (coords[:, None] - coords[None, :] + window - 1).clamp(0, 2 * window - 2)
    bias = table[delta[..., 0] * (2 * window - 1) + delta[..., 1]].permute(2, 0, 1)
    scores = (q @ k.mT * scale + bias).masked_fill(~together, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def tensors(plan, *, seed=0, window=WINDOW):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(BATCH, len(plan.slot), 3, HEADS, DIM, dtype=torch.float64, generator=generator)
    table = torch.randn((2 * window - 1) ** 2, HEADS, dtype=torch.float64, generator=generator)
    return qkv.requires_grad_(), table.requires_grad_()


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "auto"])
@pytest.mark.parametrize("rule", ["optimal", "largest_window", "tiles"])
@pytest.mark.parametrize(("shift", "window"), [(0, 3), (1, 3), (0, 10)])
def test_attention_and_its_gradients_equal_plain_attention(implementation, rule, shift, window):
    plan, coords = plan_and_coords(rule=rule, shift=shift, window=window)
    assert plan.identity == (window == 10)
    qkv, table = tensors(plan, window=window)
    expected = plain(qkv, table, coords, shift=shift, scale=0.4, window=window)
    got = window_attention(qkv, table, plan, scale=0.4, implementation=implementation)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    for g, e in zip(
        torch.autograd.grad((got * weight).sum(), (qkv, table)),
        torch.autograd.grad((expected * weight).sum(), (qkv, table)),
        strict=True,
    ):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-11)


def test_padding_slots_leave_no_trace_in_gradients_even_of_huge_scores():
    plan, _ = plan_and_coords(rule="largest_window")
    assert len(plan.token) > len(plan.slot)
    qkv, table = tensors(plan)
    with torch.no_grad():
        qkv[:, 0] *= 1e4  # the token that padding copies
    for implementation in IMPLEMENTATIONS:
        out = window_attention(qkv, table, plan, scale=1.0, implementation=implementation)
        gradients = torch.autograd.grad(out.square().sum(), (qkv, table))
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_bias_is_the_tables_row_or_minus_infinity():
    table = torch.arange(18.0).view(9, 2)
    index = torch.tensor([[[4, 9], [9, 0]], [[1, 2], [3, 4]]])
    bias = pair_bias(table, index).view(2, 2, 2, 2)  # heads, groups, slots, slots
    assert bias[0, 0].tolist() == [[8, -torch.inf], [-torch.inf, 0]]
    assert bias[1, 1].tolist() == [[3, 5], [7, 9]]


def test_softmax_runs_in_fp32_for_bf16():
    plan, coords = plan_and_coords(rule="optimal")
    qkv, table = tensors(plan)
    expected = plain(qkv, table, coords, shift=1, scale=0.4)
    for implementation in IMPLEMENTATIONS:
        got = window_attention(qkv.bfloat16(), table.bfloat16(), plan, scale=0.4, implementation=implementation)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected, rtol=0.05, atol=0.05)
