"""Attention to mask against plain loops and torch's own modules, and the published first weights."""

import pytest
import torch
from torch import nn

from finetune.segmentation.heads.atm import AtmStage, Attention, MaskAttention, Projection, init_decoder


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 12, 16, dtype=torch.float64)


def test_attention_is_torchs_multihead_attention(tokens):
    queries, memory = tokens
    ours = Attention(16, num_heads=4).double().eval()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64).eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.in_proj.weight,
            "in_proj_bias": ours.in_proj.bias,
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    expected = theirs(queries, memory, memory, need_weights=False)[0]
    torch.testing.assert_close(ours(queries, memory), expected)


def test_mask_logits_are_the_mean_over_heads_of_similarities_before_the_softmax(tokens):
    queries, memory = tokens
    attention = MaskAttention(16, num_heads=4).double().eval()
    gathered, masks = attention(queries, memory)
    q, k, v = attention.q(queries), attention.k(memory), attention.v(memory)
    heads = [slice(4 * n, 4 * n + 4) for n in range(4)]
    similarities = [q[..., head] @ k[..., head].transpose(1, 2) / 4**0.5 for head in heads]
    torch.testing.assert_close(masks, sum(similarities) / 4)
    each = [s.softmax(-1) @ v[..., head] for s, head in zip(similarities, heads, strict=True)]
    torch.testing.assert_close(gathered, attention.proj(torch.cat(each, dim=-1)))


def test_a_layer_is_post_norm_self_attention_then_the_map_then_the_mlp(tokens):
    queries, memory = tokens
    stage = AtmStage(16, num_heads=4, depth=1).double().eval()
    ((found, masks),) = stage(queries, memory)
    layer = stage.layers[0]
    x = layer.norm1(queries + layer.self_attention(queries, queries))
    gathered, expected_masks = layer.cross_attention(x, memory)
    x = layer.norm2(x + gathered)
    torch.testing.assert_close(found, layer.norm3(x + layer.mlp(x)))
    torch.testing.assert_close(masks, expected_masks)


def test_first_weights_are_the_published_ones():
    torch.manual_seed(0)
    stage = AtmStage(64, num_heads=2, depth=3)
    init_decoder(stage)
    first, *others = stage.layers
    packed = first.self_attention.in_proj.weight
    assert packed.abs().max() <= (6 / (64 + 192)) ** 0.5
    assert packed.std().item() == pytest.approx((2 / (64 + 192)) ** 0.5, rel=0.05)
    assert first.cross_attention.q.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(not layer.bias.any() for layer in stage.modules() if isinstance(layer, nn.Linear))
    for other in others:  # copied layers start alike in the packed projection alone
        assert torch.equal(other.self_attention.in_proj.weight, packed)
        assert not torch.equal(other.cross_attention.q.weight, first.cross_attention.q.weight)


def test_a_projection_reads_places_in_raster_order():
    project = Projection(3, 8).eval()
    features = torch.randn(1, 3, 4, 5)
    assert torch.allclose(
        project(features)[0, 1 * 5 + 2], project.norm(project.linear(features[0, :, 1, 2])), atol=1e-6
    )
