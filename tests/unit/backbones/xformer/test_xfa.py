"""The three readings of cross feature attention: equal to their formulas, linear in tokens, steady in scale."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.xformer.xfa import FORMULAS

XFA = ["r1", "r2", "r3"]


def core_of(formula, *, dim=6, reference_tokens=7):
    torch.manual_seed(0)
    return FORMULAS[formula](dim, reference_tokens=reference_tokens).double()


def tokens(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def written(core, formula, q, k, v):
    """The formulas, token by token and feature by feature, for one sequence."""
    num, dim = q.shape
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    if formula == "r3":
        context = sum((k[n] @ core.context.weight[0]) * k[n] for n in range(num))
        return torch.stack([(q[n] @ context) * (k[n] @ core.feature.weight[0]) * v[n] for n in range(num)])
    kernel = core.context.weight[:, 0]  # dim 3
    before, after = ({n + by: k[n] for n in range(num)} for by in (1, -1))
    none = torch.zeros(dim, dtype=k.dtype)
    k_c = [
        kernel[:, 0] * before.get(n, none) + kernel[:, 1] * k[n] + kernel[:, 2] * after.get(n, none) for n in range(num)
    ]
    if formula == "r1":
        scores = sum(torch.outer(k_c[n], (k[n] @ core.feature.weight[0]) * v[n]) for n in range(num))
        return q @ scores
    w = core.feature.weight[0, 0]
    padded = torch.cat([torch.zeros(num, 1, dtype=k.dtype), k, torch.zeros(num, 1, dtype=k.dtype)], dim=1)
    k_f = [w[0] * padded[n, :-2] + w[1] * padded[n, 1:-1] + w[2] * padded[n, 2:] for n in range(num)]
    return v @ sum(torch.outer(k_c[n], k_f[n]) for n in range(num))


@pytest.mark.parametrize("formula", XFA)
def test_formula_is_as_written_at_the_reference_number_of_tokens(formula):
    core = core_of(formula)
    core.temperature.data.fill_(1.7)
    q, k, v = tokens(3, 2, 7, 6)
    expected = torch.stack([1.7 * written(core, formula, q[s], k[s], v[s]) for s in range(2)])
    torch.testing.assert_close(core(q, k, v), expected)


@pytest.mark.parametrize("formula", [*XFA, "softmax"])
def test_tokens_that_are_not_real_change_no_other_and_count_as_zero(formula):
    core = core_of(formula)
    q, k, v = tokens(3, 2, 7, 6)
    real = torch.tensor([[True, True, False, True, True, False, True]])
    changed = [torch.where(real.unsqueeze(-1), x, torch.full_like(x, 50.0)) for x in (q, k, v)]
    got, other = core(q, k, v, real), core(*changed, real)
    assert torch.equal(got[:, real[0]], other[:, real[0]])
    end = torch.tensor([[True] * 5 + [False] * 2])
    torch.testing.assert_close(core(q, k, v, end)[:, :5], core(q[:, :5], k[:, :5], v[:, :5]))


@pytest.mark.parametrize("formula", [*XFA, "softmax"])
def test_sequence_without_real_tokens_stays_finite(formula):
    q, k, v = tokens(3, 2, 7, 6)
    real = torch.tensor([[False] * 7, [True] * 7])
    core = core_of(formula)
    got = core(q, k, v, real)
    assert got.isfinite().all()
    torch.testing.assert_close(got[1:], core(q[1:], k[1:], v[1:]))


@pytest.mark.parametrize("formula", XFA)
def test_scale_does_not_grow_with_the_number_of_tokens(formula):
    core = core_of(formula)
    q, k, v = tokens(3, 1, 7, 6)
    same = [x[:, :1].expand(1, n, 6) for n in (70, 7000) for x in (q, k, v)]
    few, many = core(*same[:3])[0, 0], core(*same[3:])[0, 0]
    torch.testing.assert_close(few, many, rtol=0.03, atol=0)  # the borders' share is all that differs


@pytest.mark.parametrize(("formula", "growth"), [("r1", 4), ("r2", 4), ("softmax", 16)])
def test_multiplications_grow_with_the_tokens_or_with_their_square(formula, growth):
    counts = []
    for num in (64, 256):
        core = FORMULAS[formula](96, reference_tokens=64)
        with FlopCounterMode(display=False) as counter:
            core(*torch.randn(3, 1, num, 96))
        counts.append(counter.get_total_flops())
    assert counts[1] == growth * counts[0]


def test_first_output_of_r1_is_small_beside_the_values():
    core = FORMULAS["r1"](96, reference_tokens=256)
    q, k, v = torch.randn(3, 8, 256, 96)
    assert 0.03 < (core(q, k, v).std() / v.std()).item() < 0.08
