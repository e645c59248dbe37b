"""Proofs that any backbone on visible tokens must pass, for timm's plain ViT."""

import numpy as np
import pytest
import timm
import torch

from backbones.build import forward_masked, forward_visible, layout_spec
from backbones.visible.layout import build_layout

SIZES = [(64, 64), (96, 64), (48, 160)]
VARIANTS = [
    {},
    {"class_token": False, "global_pool": "avg"},
    {"reg_tokens": 3},
    {"reg_tokens": 2, "no_embed_class": True},
    {"pos_embed": "none", "pre_norm": True},
    {"dynamic_img_size": True},
]


def narrow(img_size, **changes):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=img_size, embed_dim=24, depth=3, num_heads=3, num_classes=0, **changes
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():  # timm starts with zeros, which would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_for(spec, *, batch=2):
    return torch.randn(batch, 3, *spec.img_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def some_visible(spec, *, ratio=0.75, seed=0):
    visible = np.random.default_rng(seed).random(spec.units) >= ratio
    visible.flat[seed % visible.size] = True
    return visible


def dense_without_masked_tokens(model, images, visible):
    """timm's own embedding and blocks with a score of minus infinity on every masked patch."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    patches = torch.from_numpy(visible).flatten()
    seen = torch.cat([torch.ones(model.num_prefix_tokens, dtype=torch.bool), patches])
    for block in model.blocks:
        x = block(x, attn_mask=seen.expand(len(seen), -1))
    return model.fc_norm(model.norm(x)[:, model.num_prefix_tokens :][:, patches])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_everything_visible_equals_timms_patch_tokens(size, variant):
    model = narrow(size, **variant)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec)
    expected = model.fc_norm(model.forward_features(images)[:, model.num_prefix_tokens :])
    torch.testing.assert_close(forward_visible(model, images, layout), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("variant", VARIANTS[:3], ids=str)
def test_forward_and_gradient_equal_dense_attention_without_the_masked_tokens(size, ratio, variant):
    model = narrow(size, **variant)
    spec = layout_spec(model)
    visible = some_visible(spec, ratio=ratio)
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    expected = dense_without_masked_tokens(model, images, visible)
    got = forward_visible(model, images, layout)
    torch.testing.assert_close(got, expected)

    weight = torch.randn_like(expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((got * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
    )


@pytest.mark.parametrize("size", SIZES)
def test_masked_pixels_change_nothing(size):
    model = narrow(size)
    spec = layout_spec(model)
    visible = some_visible(spec)
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    pixels = torch.from_numpy(visible).repeat_interleave(16, 0).repeat_interleave(16, 1)
    other = torch.where(pixels, images, torch.full_like(images, 1e4))
    assert torch.equal(forward_visible(model, images, layout), forward_visible(model, other, layout))


def test_dense_way_puts_the_mask_token_where_nothing_is_seen():
    model = narrow((64, 96))
    spec = layout_spec(model)
    visible = some_visible(spec)
    images, token = images_for(spec), torch.randn(1, 1, 1, 24, dtype=torch.float64)
    everything = torch.ones(spec.units, dtype=torch.bool)
    expected = model.forward_features(images)[:, 1:]
    torch.testing.assert_close(forward_masked(model, images, everything, token), expected)
    pixels = torch.from_numpy(visible).repeat_interleave(16, 0).repeat_interleave(16, 1)
    other = torch.where(pixels, images, torch.zeros_like(images))
    seen = torch.from_numpy(visible)
    masked = forward_masked(model, images, seen, token)
    assert torch.equal(masked, forward_masked(model, other, seen, token))
    assert not torch.equal(masked, forward_masked(model, images, seen, 2 * token))


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for enable in (False, True):
        model = narrow((64, 64))
        model.set_grad_checkpointing(enable)
        spec = layout_spec(model)
        layout = build_layout(spec, some_visible(spec)).to("cpu")
        forward_visible(model, images_for(spec), layout).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "name", ["vit_small_r26_s32_224", "deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224"]
)
def test_vits_that_are_not_plain_are_refused(name):
    with torch.device("meta"), pytest.raises(ValueError, match="is no plain ViT: expected patches cut by one convol"):
        layout_spec(timm.create_model(name))
