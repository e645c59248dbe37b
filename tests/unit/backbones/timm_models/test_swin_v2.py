"""Proofs that any backbone on visible tokens must pass, for Swin V2."""

import numpy as np
import pytest
import timm
import torch

from backbones.build import build, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout
from tests.unit.backbones.timm_models.dense_reference import forward_reference

TINY = "swinv2_tiny_window8_256"
NARROW = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}


def narrow(*, img_size, window, **changes):
    torch.manual_seed(0)
    model = build(BackboneConfig(name=TINY, img_size=img_size, window=window, **NARROW), **changes).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # timm starts with residual norms at zero: nothing would show
            parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith("logit_scale"):
                parameter.add_(torch.linspace(0, 3, len(parameter)).view_as(parameter))  # some above the clamp
    return model


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def images_for(spec, *, batch=2):
    return torch.randn(batch, 3, *spec.img_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("img_size", "window"), [((256, 256), 8), ((256, 512), 8), ((224, 224), 7), ((448, 224), 14), ((256, 256), 16)]
)
def test_everything_visible_equals_timms_own_forward(img_size, window):
    model = narrow(img_size=img_size, window=window)
    plain = timm.create_model(TINY, img_size=img_size, window_size=window, num_classes=0, **NARROW).double().eval()
    plain.load_state_dict(model.state_dict())
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec, batch=1)
    with torch.no_grad():
        expected = plain.forward_features(images).flatten(1, 2)
        # timm makes its table of log-spaced coordinates in fp32 and masks with -100
        assert relative_error(forward_visible(model, images, layout), expected) < 1e-6
        assert relative_error(model.forward_features(images).flatten(1, 2), expected) < 1e-6


@pytest.mark.parametrize(("img_size", "window"), [((256, 192), 7), ((96, 160), 5), ((64, 32), 8)])
def test_everything_visible_equals_exact_windows_where_timm_would_pad(img_size, window):
    model = narrow(img_size=img_size, window=window)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec, batch=1)
    with torch.no_grad():
        expected = forward_reference(model, images, torch.ones(spec.units, dtype=torch.bool))
        assert relative_error(forward_visible(model, images, layout), expected) < 1e-6
        assert relative_error(model.forward_features(images).flatten(1, 2), expected) < 1e-6


@pytest.mark.parametrize(("img_size", "window"), [((256, 256), 8), ((128, 192), 4), ((256, 192), 7), ((96, 160), 5)])
@pytest.mark.parametrize("pretrained", [0, 6])
def test_masked_forward_and_gradient_equal_dense_attention_without_the_masked_tokens(img_size, window, pretrained):
    model = narrow(img_size=img_size, window=window, pretrained_window_sizes=(pretrained,) * 4)
    spec = layout_spec(model)
    visible = np.random.default_rng(window).random(spec.units) < 0.3
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    weight = torch.randn(2, int(visible.sum()), model.num_features, dtype=torch.float64)

    expected = forward_reference(model, images, torch.from_numpy(visible))[:, torch.from_numpy(visible).flatten()]
    got = forward_visible(model, images, layout)
    assert relative_error(got, expected) < 1e-6

    parameters = dict(model.named_parameters())
    expected_gradients = torch.autograd.grad((expected * weight).sum(), list(parameters.values()))
    gradients = torch.autograd.grad((got * weight).sum(), list(parameters.values()))
    for name, g, e in zip(parameters, gradients, expected_gradients, strict=True):
        assert (g - e).abs().max() < 1e-6 * max(1, e.abs().max()), name


def test_masked_pixels_change_nothing():
    model = narrow(img_size=(128, 160), window=4)
    spec = layout_spec(model)
    visible = np.random.default_rng(1).random(spec.units) < 0.3
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec)
    pixels = torch.from_numpy(visible).repeat_interleave(32, 0).repeat_interleave(32, 1)
    other = torch.where(pixels, images, torch.full_like(images, 1e4))
    with torch.no_grad():
        assert torch.equal(forward_visible(model, images, layout), forward_visible(model, other, layout))


def test_bf16_autocast_is_close_to_fp32():
    model = narrow(img_size=(128, 128), window=4).float()
    spec = layout_spec(model)
    layout = build_layout(spec, np.eye(4, dtype=bool)).to("cpu")
    images = images_for(spec).float()
    expected = forward_visible(model, images, layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = forward_visible(model, images, layout)
    got.float().sum().backward()
    assert relative_error(got.float(), expected) < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models("swinv2_*window*"))
def test_every_timm_swin_v2_with_everything_visible_equals_its_own_forward(name):
    torch.manual_seed(0)
    model = build(BackboneConfig(name=name, img_size=(192, 192) if name.endswith("192") else (256, 256)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec, batch=1).float()
    with torch.no_grad():
        expected = model.forward_features(images).flatten(1, 2)
        assert relative_error(forward_visible(model, images, layout), expected) < 1e-4
