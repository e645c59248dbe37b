"""Proofs that any backbone on visible tokens must pass, for XFormer with every reading of its attention."""

import numpy as np
import pytest
import timm
import torch

from backbones.build import forward_masked, forward_visible, layout_spec
from backbones.visible.layout import build_layout
from backbones.xformer.xfa import FORMULAS
from backbones.xformer.xformer import XfUnit, fold, unfold

TINY = {"widths": (6, 6, 8, 10, 12), "stem_width": 4, "embed_dims": (8, 12, 16), "depths": (2, 1, 1), "qkv_dim": 8}
SIZES = [(64, 64), (96, 160), (128, 64)]


def narrow(img_size, attention="r1"):
    torch.manual_seed(0)
    model = timm.create_model(
        "xformer", img_size=img_size, attention=attention, num_classes=0, num_features=14, **TINY
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return model.eval()


def images_for(spec, *, batch=2):
    return torch.randn(batch, 3, *spec.img_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def some_visible(spec, *, ratio=0.6, seed=0):
    visible = np.random.default_rng(seed).random(spec.units) >= ratio
    visible.flat[seed % visible.size] = True
    return visible


def grown(visible, side):
    return visible.repeat_interleave(side, 0).repeat_interleave(side, 1)


def reference(model, images, visible):
    """The dense modules on whole maps that are zero wherever they are hidden; [b, visible units, c]."""

    def at(x, module):
        """Run a module that looks at single places on the visible ones."""
        seen = grown(visible, x.shape[2] // visible.shape[0])
        out = module(x[:, :, seen].unsqueeze(2)).squeeze(2)
        whole = torch.zeros(*out.shape[:2], *x.shape[2:], dtype=x.dtype)
        whole[:, :, seen] = out
        return whole

    def conv(layer, x):
        return at(layer.conv(x), layer.bn)

    def mv3(block, x):
        y = conv(block.depthwise, conv(block.expand, x))
        y = conv(block.project, at(y, block.se))
        return x + y if block.residual else y

    def unit(block, x):
        y = block.embed(conv(block.local, x))
        tokens, _ = unfold(y)
        seen = grown(visible, x.shape[2] // visible.shape[0]).double().expand(len(x), 1, -1, -1)
        real = unfold(seen)[0].squeeze(-1).bool()
        for layer in block.layers:
            tokens = layer(tokens, real)
        y = fold(block.norm(tokens), tuple(y.shape[2:]))
        return conv(block.fuse, torch.cat([x, conv(block.project, y)], dim=1))

    x = conv(model.stem, images * grown(visible, 32))
    for stage in model.stages:
        for block in stage:
            x = unit(block, x) if isinstance(block, XfUnit) else mv3(block, x)
    return conv(model.final_conv, x)[:, :, visible].mT


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("attention", list(FORMULAS))
@pytest.mark.parametrize("training", [False, True])
def test_everything_visible_equals_the_dense_forward(attention, size, training):
    model = narrow(size, attention).train(training)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec)
    expected = model.forward_features(images).flatten(2).mT
    torch.testing.assert_close(forward_visible(model, images, layout), expected)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("attention", list(FORMULAS))
@pytest.mark.parametrize("training", [False, True])
def test_forward_and_gradient_equal_the_dense_modules_on_maps_with_holes(attention, size, ratio, training):
    model = narrow(size, attention).train(training)
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
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("attention", list(FORMULAS))
@pytest.mark.parametrize("training", [False, True])
def test_masked_pixels_change_nothing(attention, training):
    model = narrow((96, 160), attention).train(training)
    spec = layout_spec(model)
    visible = some_visible(spec)
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    other = torch.where(grown(torch.from_numpy(visible), 32), images, torch.full_like(images, 1e4))
    with torch.no_grad():
        assert torch.equal(forward_visible(model, images, layout), forward_visible(model, other, layout))


def test_dense_way_puts_the_mask_token_where_nothing_is_seen():
    model = narrow((64, 96))
    spec = layout_spec(model)
    images, token = images_for(spec), torch.randn(1, 1, 1, 4, dtype=torch.float64)
    everything = torch.ones(spec.units, dtype=torch.bool)
    torch.testing.assert_close(
        forward_masked(model, images, everything, token), model.forward_features(images).flatten(2).mT
    )
    seen = torch.from_numpy(some_visible(spec))
    other = torch.where(grown(seen, 32), images, torch.full_like(images, 1e4))
    masked = forward_masked(model, images, seen, token)
    assert torch.equal(masked, forward_masked(model, other, seen, token))
    assert not torch.equal(masked, forward_masked(model, images, seen, 2 * token))


def test_one_visible_unit_of_one_image_cannot_train_batch_norm():
    model = narrow((64, 64))
    spec = layout_spec(model)
    layout = build_layout(spec, np.eye(2, dtype=bool) & [[True, False]]).to("cpu")
    assert forward_visible(model, images_for(spec, batch=1), layout).shape[1] == 1
    model.train()
    assert len(forward_visible(model, images_for(spec), layout)) == 2
    with pytest.raises(ValueError, match="expected at least 2 visible units or images in a micro-batch, got 1 visible"):
        forward_visible(model, images_for(spec, batch=1), layout)
