"""Proofs that any backbone on visible tokens must pass, for timm's Twins."""

import numpy as np
import pytest
import timm
import torch

from backbones.build import build, forward_masked, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout

NARROW = {"embed_dim": 8, "depths": (2, 2, 3, 2), "num_heads": (1, 2, 2, 4)}
WHOLE_WINDOWS = [((224, 224), 7), ((224, 448), 7), ((128, 64), 2), ((128, 256), 4)]
CUT_WINDOWS = [((256, 192), 7), ((96, 160), 5), ((64, 32), 7)]


def narrow(*, img_size, window, name="twins_svt_small"):
    torch.manual_seed(0)
    sizes = {**NARROW, "window": window} if window else NARROW
    model = build(BackboneConfig(name=name, img_size=img_size, **sizes)).double()
    with torch.no_grad():
        for parameter in model.parameters():  # timm starts with zero biases, which would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_for(spec, *, batch=2):
    return torch.randn(batch, 3, *spec.img_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def some_visible(spec, *, ratio=0.75, seed=0):
    visible = np.random.default_rng(seed).random(spec.units) >= ratio
    visible.flat[seed % visible.size] = True
    return visible


def reference(model, images, visible):
    """A plain dense forward in which only tokens of visible units [rows, cols] are seen by others."""
    x = images
    for i, embed in enumerate(model.patch_embeds):
        x = embed.norm(embed.proj(x).permute(0, 2, 3, 1))  # b h w c
        seen = visible
        for axis in (0, 1):
            seen = seen.repeat_interleave(x.shape[1 + axis] // visible.shape[axis], axis)
        for j, block in enumerate(model.blocks[i]):
            y = block.norm1(x)
            y = keys_of_squares(block.attn, y, visible) if hasattr(block.attn, "sr") else windows(block.attn, y, seen)
            x = x + y
            x = x + block.mlp(block.norm2(x))
            if j == 0:
                only = (x * seen[None, :, :, None]).permute(0, 3, 1, 2)
                x = x + model.pos_block[i].proj(only).permute(0, 2, 3, 1)
        x = x.permute(0, 3, 1, 2)
    return model.norm(x.flatten(2).mT)


def attend(q, k, v, attn):
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT * attn.scale).softmax(-1) @ v).transpose(1, 2).flatten(2)


def windows(attn, y, seen):
    out = torch.zeros_like(y)
    height, width = y.shape[1:3]
    for top in range(0, height, attn.ws):
        for left in range(0, width, attn.ws):
            box = (slice(top, top + attn.ws), slice(left, left + attn.ws))
            at = seen[box].flatten()
            if at.any():
                q, k, v = attn.qkv(y[:, *box].flatten(1, 2)[:, at]).chunk(3, dim=-1)
                part = torch.zeros_like(y[:, *box]).flatten(1, 2)
                part[:, at] = attend(q, k, v, attn)
                out[:, *box] = part.view_as(out[:, *box])
    return attn.proj(out)


def keys_of_squares(attn, y, visible):
    keys, at = y.flatten(1, 2), visible
    if attn.sr is not None:
        maps = attn.sr(y.permute(0, 3, 1, 2))
        keys = attn.norm(maps.flatten(2).mT)
        at = visible.repeat_interleave(maps.shape[2] // visible.shape[0], 0)
        at = at.repeat_interleave(maps.shape[3] // visible.shape[1], 1)
    k, v = attn.kv(keys[:, at.flatten()]).chunk(2, dim=-1)
    return attn.proj(attend(attn.q(y.flatten(1, 2)), k, v, attn)).view_as(y)


@pytest.mark.parametrize(("img_size", "window"), WHOLE_WINDOWS)
def test_everything_visible_equals_timms_own_forward(img_size, window):
    model = narrow(img_size=img_size, window=window)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec, batch=1)
    sizes = {"embed_dims": (8, 16, 32, 64), "wss": (window,) * 4, "depths": (2, 2, 3, 2), "num_heads": (1, 2, 2, 4)}
    plain = timm.create_model("twins_svt_small", img_size=img_size, num_classes=0, **sizes).double().eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = plain.forward_features(images)
        torch.testing.assert_close(forward_visible(model, images, layout), expected)
        torch.testing.assert_close(model.forward_features(images), expected)


def test_everything_visible_equals_timms_own_forward_without_windows():
    model = narrow(img_size=(64, 96), window=None, name="twins_pcpvt_small")
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec)
    with torch.no_grad():
        torch.testing.assert_close(forward_visible(model, images, layout), model.forward_features(images))


@pytest.mark.parametrize(("img_size", "window"), CUT_WINDOWS)
def test_everything_visible_equals_exact_windows_where_timm_would_pad(img_size, window):
    model = narrow(img_size=img_size, window=window)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec)
    with torch.no_grad():
        expected = reference(model, images, torch.ones(spec.units, dtype=torch.bool))
        torch.testing.assert_close(forward_visible(model, images, layout), expected)
        torch.testing.assert_close(model.forward_features(images), expected)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
@pytest.mark.parametrize(("img_size", "window"), [((128, 128), 4), ((128, 192), 7), ((96, 160), 5)])
def test_forward_and_gradient_equal_dense_attention_without_the_masked_tokens(img_size, window, ratio):
    model = narrow(img_size=img_size, window=window)
    spec = layout_spec(model)
    visible = some_visible(spec, ratio=ratio)
    layout = build_layout(spec, visible).to("cpu")
    images, seen = images_for(spec), torch.from_numpy(visible)
    expected = reference(model, images, seen)[:, seen.flatten()]
    got = forward_visible(model, images, layout)
    torch.testing.assert_close(got, expected)

    weight = torch.randn_like(expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((got * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
    )


def test_masked_pixels_change_nothing():
    model = narrow(img_size=(128, 160), window=4)
    spec = layout_spec(model)
    visible = some_visible(spec)
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    pixels = torch.from_numpy(visible).repeat_interleave(32, 0).repeat_interleave(32, 1)
    other = torch.where(pixels, images, torch.full_like(images, 1e4))
    with torch.no_grad():
        assert torch.equal(forward_visible(model, images, layout), forward_visible(model, other, layout))


def test_each_visible_unit_gives_one_key_at_every_stage():
    model = narrow(img_size=(128, 160), window=4)
    spec = layout_spec(model)
    layout = build_layout(spec, some_visible(spec)).to("cpu")
    lengths = []
    for stage in model.blocks:
        stage[1].attn.kv.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    forward_visible(model, images_for(spec), layout)
    assert lengths == [len(layout.units)] * 4


def test_dense_way_puts_the_mask_token_where_nothing_is_seen():
    model = narrow(img_size=(64, 96), window=4)
    spec = layout_spec(model)
    images, token = images_for(spec), torch.randn(1, 1, 1, 8, dtype=torch.float64)
    everything = torch.ones(spec.units, dtype=torch.bool)
    torch.testing.assert_close(forward_masked(model, images, everything, token), model.forward_features(images))
    visible = some_visible(spec)
    pixels = torch.from_numpy(visible).repeat_interleave(32, 0).repeat_interleave(32, 1)
    other = torch.where(pixels, images, torch.zeros_like(images))
    seen = torch.from_numpy(visible)
    masked = forward_masked(model, images, seen, token)
    assert torch.equal(masked, forward_masked(model, other, seen, token))
    assert not torch.equal(masked, forward_masked(model, images, seen, 2 * token))


def test_keys_that_would_cover_hidden_and_visible_tokens_are_refused():
    with torch.device("meta"):
        model = timm.create_model("twins_svt_small", sr_ratios=(8, 4, 4, 1))
    with pytest.raises(ValueError, match="a key of stage 3 would cover 4x4 tokens, but a mask unit has 2x2 there"):
        layout_spec(model)
