"""Proofs that any backbone on visible tokens must pass, for Swin."""

import numpy as np
import pytest
import timm
import torch

from backbones.build import build, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout
from tests.unit.backbones.timm_models.dense_reference import forward_reference

TINY = "swin_tiny_patch4_window7_224"
NARROW = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}
WHOLE_WINDOWS = [
    ((224, 224), 7),
    ((224, 448), 7),
    ((448, 224), 7),
    ((224, 224), 14),
    ((224, 448), 14),
    ((448, 224), 14),
    ((384, 384), 12),
    ((384, 768), 12),
]
CUT_WINDOWS = [((256, 192), 7), ((384, 384), 7), ((96, 160), 5), ((64, 32), 7)]


def narrow(*, img_size, window, seed=0, **changes):
    torch.manual_seed(seed)
    model = build(BackboneConfig(name=TINY, img_size=img_size, window=window, **{**NARROW, **changes})).double()
    with torch.no_grad():
        for parameter in model.parameters():  # timm starts with zero biases and tiny tables, which would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def some_visible(spec, *, ratio=0.25, seed=0):
    visible = np.random.default_rng(seed).random(spec.units) < ratio
    visible.flat[seed % visible.size] = True
    return visible


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def images_for(spec, *, batch=2, dtype=torch.float64, seed=0):
    return torch.randn(batch, 3, *spec.img_size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("img_size", "window"), WHOLE_WINDOWS)
def test_everything_visible_equals_timms_own_forward(img_size, window):
    model = narrow(img_size=img_size, window=window).float()
    plain = timm.create_model(TINY, img_size=img_size, window_size=window, num_classes=0, **NARROW).eval()
    plain.load_state_dict(model.state_dict())
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec, batch=1, dtype=torch.float32)
    with torch.no_grad():
        expected = plain.forward_features(images).flatten(1, 2)
        assert relative_error(forward_visible(model, images, layout), expected) < 1e-5
        assert torch.equal(model.forward_features(images).flatten(1, 2), expected)


@pytest.mark.parametrize(("img_size", "window"), CUT_WINDOWS)
def test_everything_visible_equals_exact_windows_where_timm_would_pad(img_size, window):
    model = narrow(img_size=img_size, window=window)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec, batch=1)
    with torch.no_grad():
        expected = forward_reference(model, images, torch.ones(spec.units, dtype=torch.bool))
        assert relative_error(forward_visible(model, images, layout), expected) < 1e-12
        assert relative_error(model.forward_features(images).flatten(1, 2), expected) < 1e-12


@pytest.mark.parametrize(
    ("img_size", "window"),
    [((224, 224), 7), ((224, 224), 14), ((128, 192), 4), ((256, 192), 7), ((96, 160), 5), ((64, 32), 7)],
)
@pytest.mark.parametrize("rule", ["optimal", "largest_window"])
def test_masked_forward_and_gradient_equal_dense_attention_without_the_masked_tokens(img_size, window, rule):
    model = narrow(img_size=img_size, window=window)
    spec = layout_spec(model)
    visible = some_visible(spec, seed=window)
    layout = build_layout(spec, visible, rule=rule).to("cpu")
    images = images_for(spec)
    weight = torch.randn(2, int(visible.sum()), model.num_features, dtype=torch.float64)

    expected = forward_reference(model, images, torch.from_numpy(visible))[:, torch.from_numpy(visible).flatten()]
    got = forward_visible(model, images, layout)
    assert relative_error(got, expected) < 1e-12

    parameters = dict(model.named_parameters())
    expected_gradients = torch.autograd.grad((expected * weight).sum(), list(parameters.values()), allow_unused=True)
    gradients = torch.autograd.grad((got * weight).sum(), list(parameters.values()), allow_unused=True)
    for name, g, e in zip(parameters, gradients, expected_gradients, strict=True):
        assert (g - e).abs().max() < 1e-11 * max(1, e.abs().max()), name


def test_masked_pixels_change_nothing():
    model = narrow(img_size=(128, 160), window=4).float()
    spec = layout_spec(model)
    visible = some_visible(spec)
    layout = build_layout(spec, visible).to("cpu")
    images = images_for(spec, dtype=torch.float32)
    pixels = torch.from_numpy(visible).repeat_interleave(32, 0).repeat_interleave(32, 1)
    other = torch.where(pixels, images, torch.full_like(images, 1e4))
    with torch.no_grad():
        assert torch.equal(forward_visible(model, images, layout), forward_visible(model, other, layout))


def test_images_of_a_batch_do_not_mix():
    model = narrow(img_size=(96, 128), window=4)
    spec = layout_spec(model)
    layout = build_layout(spec, some_visible(spec)).to("cpu")
    images = images_for(spec, batch=3)
    with torch.no_grad():
        together = forward_visible(model, images, layout)
        for number in range(3):
            alone = forward_visible(model, images[number : number + 1], layout)
            assert relative_error(together[number : number + 1], alone) < 1e-12


def test_recomputing_blocks_changes_nothing():
    model = narrow(img_size=(64, 64), window=2)
    spec = layout_spec(model)
    layout = build_layout(spec, some_visible(spec, ratio=0.6)).to("cpu")
    images = images_for(spec)
    results = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        forward_visible(model, images, layout).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_stochastic_depth_drops_whole_branches_per_image():
    model = build(BackboneConfig(name=TINY, img_size=(64, 64), window=2, drop_path=0.9, **NARROW)).train()
    spec = layout_spec(model)
    layout = build_layout(spec, some_visible(spec, ratio=0.6)).to("cpu")
    images = images_for(spec, batch=1, dtype=torch.float32).expand(8, -1, -1, -1)
    features = forward_visible(model, images, layout)
    assert features.isfinite().all()
    assert features.std(0).max() > 0


def test_bf16_autocast_is_close_to_fp32():
    model = narrow(img_size=(128, 128), window=4).float()
    spec = layout_spec(model)
    layout = build_layout(spec, some_visible(spec)).to("cpu")
    images = images_for(spec, dtype=torch.float32)
    expected = forward_visible(model, images, layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = forward_visible(model, images, layout)
    got.float().sum().backward()
    assert relative_error(got.float(), expected) < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in timm.list_models("swin_*") if "s3" not in n or "tiny" in n])
def test_every_timm_swin_with_everything_visible_equals_its_own_forward(name):
    torch.manual_seed(0)
    model = build(BackboneConfig(name=name, img_size=(384, 384) if "384" in name else (224, 224)))
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    images = images_for(spec, batch=1, dtype=torch.float32)
    with torch.no_grad():
        expected = model.forward_features(images).flatten(1, 2)
        assert relative_error(forward_visible(model, images, layout), expected) < 1e-4
