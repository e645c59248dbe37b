"""Attention inside clusters equals a plain loop over images, heads and clusters; so do windows and rotary positions."""

import itertools
import math

import pytest
import torch

from backbones.sec.attention import (
    SecAttention,
    cluster_attention,
    cluster_slots,
    num_clusters_for,
    partition_attention,
    rotation,
    similarity,
    turned,
    window_groups,
)
from backbones.visible.token_grid import dense_grid

CPU = torch.device("cpu")


def qkv(num_tokens, *, batch=2, heads=3, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, num_tokens, heads, dim, dtype=torch.float64, generator=generator).requires_grad_()


def plain_clusters(q, k, v, *, num_clusters, global_token="k"):
    out = torch.zeros_like(v)
    num_tokens, dim = q.shape[1], q.shape[-1]
    for b in range(len(q)):
        for h in range(q.shape[2]):
            queries, keys, values = q[b, :, h], k[b, :, h], v[b, :, h]
            mean = (keys if global_token == "k" else queries).mean(0)
            order = torch.nn.functional.cosine_similarity(mean[None], keys).argsort(stable=True)
            ends = [i * num_tokens // num_clusters for i in range(num_clusters + 1)]
            for start, end in itertools.pairwise(ends):
                ids = order[start:end]
                weights = (queries[ids] @ keys[ids].mT / math.sqrt(dim)).softmax(-1)
                out = out.index_put((torch.tensor(b), ids, torch.tensor(h)), weights @ values[ids])
    return out


@pytest.mark.parametrize("global_token", ["k", "q"])
@pytest.mark.parametrize(("num_tokens", "num_clusters"), [(24, 4), (24, 1), (23, 4), (25, 4), (6, 4), (3, 8)])
def test_cluster_attention_equals_loops_values_and_gradients(num_tokens, num_clusters, global_token):
    x = qkv(num_tokens)
    got = cluster_attention(*x.unbind(0), num_clusters=num_clusters, global_token=global_token)
    expected = plain_clusters(*x.unbind(0), num_clusters=min(num_clusters, num_tokens), global_token=global_token)
    assert torch.allclose(got, expected, atol=1e-12)
    weight = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (got, expected))
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_clusters_are_of_almost_equal_size_and_lose_no_rank():
    for num_tokens, num_clusters in ((24, 4), (23, 4), (262 * 64, 32 * 5)):
        slots = cluster_slots(num_tokens, num_clusters, device=CPU)
        assert torch.equal(slots.rank[slots.slot], torch.arange(num_tokens))
        if slots.free is not None:
            assert slots.free.sum() == slots.free.numel() - num_tokens
            assert slots.free.sum(1).max() <= 1
            assert not slots.free.flatten()[slots.slot].any()


def test_cluster_counts_follow_the_published_ones_in_tokens_per_cluster():
    assert [num_clusters_for(49, at_224=count) for count in (32, 8, 2, 1)] == [32, 8, 2, 1]
    large = 25 * 42  # 800 x 1344 px
    assert [num_clusters_for(large, at_224=count) for count in (32, 8, 2, 1)] == [672, 168, 42, 1]
    assert 64 * large / num_clusters_for(large, at_224=32) == 100
    assert num_clusters_for(12, at_224=32) == 32  # fewer units than at 224 px: never fewer clusters
    assert num_clusters_for(2 * 131, at_224=2) == 2 * 5  # divisors 1, 2, 131, 262 are more than 2 times off 5.3


def test_similarity_is_computed_in_fp32_under_autocast():
    q, k, _ = qkv(50).detach().float().unbind(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity(q, k, global_token="k")
    assert found.dtype == torch.float32
    mean = k.double().mean(1, keepdim=True)
    expected = torch.nn.functional.cosine_similarity(mean, k.double(), dim=-1).transpose(1, 2)
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_equal_tokens_keep_their_order():
    x = qkv(8).detach()
    x[1] = x[1][:, :1]  # all keys of a head alike
    q, k, v = x.unbind(0)
    got = cluster_attention(q, k, v, num_clusters=2)
    halves = [cluster_attention(q[:, i : i + 4], k[:, i : i + 4], v[:, i : i + 4], num_clusters=1) for i in (0, 4)]
    assert torch.allclose(got, torch.cat(halves, 1))


def test_rotation_turns_neighbouring_features_by_row_and_column():
    coords = torch.tensor([[0, 0], [2, 0], [3, 5]])
    x = qkv(3, batch=1, heads=1, dim=8).detach()
    q, k, v = turned(x.permute(1, 2, 0, 3, 4), rotation(coords, 8, dtype=torch.float64))
    assert torch.equal(v, x[2])
    for turned_x, plain in ((q, x[0]), (k, x[1])):
        for n, (row, col) in enumerate(coords.tolist()):
            for pair, angle in enumerate((row, row * 1e-4, col, col * 1e-4)):
                a, b = plain[0, n, 0, 2 * pair : 2 * pair + 2].tolist()
                expected = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
                assert turned_x[0, n, 0, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected)


def test_gradient_of_turned_features_is_right():
    turn = rotation(torch.tensor([[0, 0], [2, 1], [3, 5]]), 8, dtype=torch.float64)
    x = torch.randn(1, 3, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: turned(x, turn), (x,))


@pytest.mark.parametrize(("partition", "ways"), [("window", 1), ("cswin", 2)])
def test_windows_and_stripes_equal_attention_with_a_mask(partition, ways):
    coords = dense_grid(4, 6, num_units=1, device=CPU).coords
    x = qkv(24, heads=4).detach()
    groups = window_groups(coords, partition=partition, side=2)
    assert len(groups) == ways
    got = partition_attention(*x.unbind(0), groups=groups)
    for head in range(4):
        for i, (row, col) in enumerate(coords.tolist()):
            seen = [
                j
                for j, (r, c) in enumerate(coords.tolist())
                if (partition == "window" and (r // 2, c // 2) == (row // 2, col // 2))
                or (partition == "cswin" and (r // 2 == row // 2 if head < 2 else c // 2 == col // 2))
            ]
            q, k, v = (part[0, :, head] for part in x)
            weights = (k[seen] @ q[i] / math.sqrt(8)).softmax(0)
            assert torch.allclose(got[0, i, head], weights @ v[seen])


def test_fixed_counts_stay_and_others_follow_the_number_of_units():
    grid = dense_grid(12, 12, num_units=144, device=CPU)
    x = torch.randn(1, 144, 8)
    torch.manual_seed(0)
    scaled = SecAttention(8, num_heads=2, num_clusters=2)
    fixed = SecAttention(8, num_heads=2, num_clusters=2, scale_clusters=False)
    six = SecAttention(8, num_heads=2, num_clusters=6, scale_clusters=False)
    fixed.load_state_dict(scaled.state_dict())
    six.load_state_dict(scaled.state_dict())
    assert torch.equal(scaled(x, grid), six(x, grid))
    assert not torch.allclose(scaled(x, grid), fixed(x, grid))
