"""Proofs that any backbone on visible tokens must pass, for timm's ConvNeXt and ConvNeXt V2."""

import numpy as np
import pytest
import timm
import torch

from backbones.build import build, forward_masked, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout

SIZES = [(64, 64), (96, 160), (32, 128)]
VARIANTS = [
    ("convnext_tiny", {}),
    ("convnext_tiny", {"conv_mlp": True}),
    ("convnextv2_tiny", {}),
    ("convnextv2_atto", {}),
]


def narrow(name, img_size, **changes):
    torch.manual_seed(0)
    config = BackboneConfig(name=name, img_size=img_size, embed_dim=8, depths=(1, 2, 2, 1))
    model = build(config, **changes).double()
    with torch.no_grad():
        for parameter in model.parameters():  # the scales of branches start at almost nothing: nothing would show
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_for(spec, *, batch=2):
    return torch.randn(batch, 3, *spec.img_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def some_visible(spec, *, ratio=0.75, seed=0):
    visible = np.random.default_rng(seed).random(spec.units) >= ratio
    visible.flat[seed % visible.size] = True
    return visible


def grown(visible, side):
    return visible.repeat_interleave(side, 0).repeat_interleave(side, 1)


def reference(model, images, visible):
    """timm's own dense modules, with every hidden token set to zero before it is looked at; [b, visible units, c]."""
    x = model.stem(images)
    for i, stage in enumerate(model.stages):
        x = stage.downsample(x)
        seen = grown(visible, 8 >> i)
        for block in stage.blocks:
            y = block.conv_dw(x * seen)[:, :, seen].unsqueeze(2)  # b c 1 n: the rest of a block is place by place
            if block.use_conv_mlp:
                y = block.mlp(block.norm(y))
            else:
                y = block.mlp(block.norm(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            added = torch.zeros_like(x)
            added[:, :, seen] = y.squeeze(2) * (1 if block.gamma is None else block.gamma[:, None])
            x = x + added
    return model.head.norm(model.norm_pre(x))[:, :, visible].mT


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_everything_visible_equals_timms_own_forward(name, changes, size):
    model = narrow(name, size, **changes)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec)
    with torch.no_grad():
        expected = model.head.norm(model.forward_features(images)).flatten(2).mT
        torch.testing.assert_close(forward_visible(model, images, layout), expected)


@pytest.mark.parametrize("ratio", [0.25, 0.75, 0.9])
@pytest.mark.parametrize("size", [(96, 96), (96, 160)])
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_forward_and_gradient_equal_dense_convolutions_of_maps_with_holes(name, changes, size, ratio):
    model = narrow(name, size, **changes)
    spec = layout_spec(model)
    visible = some_visible(spec, ratio=ratio)
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    expected = reference(model, images, torch.from_numpy(visible))
    got = forward_visible(model, images, layout)
    torch.testing.assert_close(got, expected)

    weight = torch.randn_like(expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((got * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
    )


def test_masked_pixels_change_nothing():
    model = narrow("convnext_tiny", (128, 160))
    spec = layout_spec(model)
    visible = some_visible(spec)
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    other = torch.where(grown(torch.from_numpy(visible), 32), images, torch.full_like(images, 1e4))
    with torch.no_grad():
        assert torch.equal(forward_visible(model, images, layout), forward_visible(model, other, layout))


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for enable in (False, True):
        model = narrow("convnext_tiny", (64, 96))
        model.set_grad_checkpointing(enable)
        spec = layout_spec(model)
        layout = build_layout(spec, some_visible(spec)).to("cpu")
        forward_visible(model, images_for(spec), layout).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_dense_way_puts_the_mask_token_where_nothing_is_seen():
    model = narrow("convnext_tiny", (64, 96))
    spec = layout_spec(model)
    images, token = images_for(spec), torch.randn(1, 1, 1, 8, dtype=torch.float64)
    everything = torch.ones(spec.units, dtype=torch.bool)
    expected = model.head.norm(model.forward_features(images)).flatten(2).mT
    torch.testing.assert_close(forward_masked(model, images, everything, token), expected)
    seen = torch.from_numpy(some_visible(spec))
    other = torch.where(grown(seen, 32), images, torch.zeros_like(images))
    masked = forward_masked(model, images, seen, token)
    assert torch.equal(masked, forward_masked(model, other, seen, token))
    assert not torch.equal(masked, forward_masked(model, images, seen, 2 * token))


@pytest.mark.parametrize(
    ("name", "message"),
    [("convnext_tiny_hnf", None), ("convnext_atto_ols", "overlaps its patches"), ("convnext_tiny", "expected strides")],
)
def test_networks_whose_layers_cross_mask_units_are_refused(name, message):
    with torch.device("meta"):
        model = timm.create_model(name, output_stride=16 if message == "expected strides" else 32)
    if message is None:
        assert layout_spec(model).unit == (32, 32)
    else:
        with pytest.raises(ValueError, match=message):
            layout_spec(model)
