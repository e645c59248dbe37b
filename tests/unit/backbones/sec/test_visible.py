"""Proofs that any backbone on visible tokens must pass, for the SEC backbones.

In float64, where near-ties cannot break a sort.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backbones.build import forward_masked, forward_visible, layout_spec, mask_token_dim
from backbones.sec.attention import num_clusters_for
from backbones.visible.layout import build_layout
from engine.distributed.batch_norm import commit_step_statistics, step_batch_norm
from tests.unit.backbones.sec.dense_reference import dense_reference
from tests.unit.backbones.sec.test_secvit import ABLATIONS, images, small

NAMES = ["secvit_tiny", "sec_swin_tiny", "sec_faster_vit_0"]
SIZES = [(64, 64), (96, 160), (160, 64)]


def layout_for(model, visible=None, *, ratio=0.5, seed=0):
    spec = layout_spec(model)
    if visible is None:
        visible = np.random.default_rng(seed).random(spec.units) >= ratio
        visible.flat[seed % visible.size] = True
    return build_layout(spec, visible).to("cpu"), torch.from_numpy(visible)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_everything_visible_equals_the_dense_forward_and_its_gradient(name, size, training):
    model = small(name, img_size=size).train(training)
    layout, _ = layout_for(model, np.ones(layout_spec(model).units, dtype=bool))
    found = []
    for forward in (lambda x: model.forward_features(x).flatten(2).mT, lambda x: forward_visible(model, x, layout)):
        features = forward(images(*size))
        weight = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view(features.shape)
        found.append((features, torch.autograd.grad((features * weight).sum(), list(model.parameters()))))
    (expected, gradients), (got, got_gradients) = found
    assert torch.allclose(got, expected, rtol=1e-9)
    for (name, _), g, e in zip(model.named_parameters(), got_gradients, gradients, strict=True):
        assert (g - e).abs().max() <= 1e-10 * max(1, e.abs().max()), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "ratio"), [((96, 160), 0.3), ((160, 64), 0.75)])
@pytest.mark.parametrize("training", [False, True])
def test_masked_forward_and_gradient_equal_dense_maps_without_the_masked_tokens(name, size, ratio, training):
    model = small(name, img_size=size).train(training)
    layout, visible = layout_for(model, ratio=ratio, seed=size[0])
    expected = dense_reference(model, images(*size), visible)
    got = forward_visible(model, images(*size), layout)
    assert torch.allclose(got, expected, rtol=1e-9)
    weight = torch.randn_like(expected)
    parameters = list(model.parameters())
    gradients, expected_gradients = (torch.autograd.grad((f * weight).sum(), parameters) for f in (got, expected))
    for (name, _), g, e in zip(model.named_parameters(), gradients, expected_gradients, strict=True):
        assert (g - e).abs().max() <= 1e-10 * max(1, e.abs().max()), name


@pytest.mark.parametrize(
    ("name", "alone"), [("secvit_tiny", False), ("sec_swin_tiny", True), ("sec_faster_vit_0", True)]
)
def test_one_visible_unit_of_one_image_trains_where_no_batch_norm_is_left_with_one_place(name, alone):
    model = small(name, img_size=(64, 64))
    layout, _ = layout_for(model, np.eye(2, dtype=bool) & [[True, False]])
    assert forward_visible(model.eval(), images(64, 64)[:1], layout).shape[1] == 1
    model.train()
    assert len(forward_visible(model, images(64, 64)[:2], layout)) == 2
    if alone:
        assert forward_visible(model, images(64, 64)[:1], layout).shape[1] == 1
    else:
        with pytest.raises(ValueError, match="expected at least 2 visible units or images in a micro-batch, got 1 vis"):
            forward_visible(model, images(64, 64)[:1], layout)


def test_clusters_follow_the_number_of_visible_units():
    """90 of 100 units, of 49 at 224 px: twice the clusters, and what dense maps without the masked tokens give."""
    model = small(img_size=(320, 320))
    visible = np.ones((10, 10), dtype=bool)
    visible.flat[::10] = False
    layout, seen = layout_for(model, visible)
    assert num_clusters_for(layout.stages[2].num_units, at_224=32) == 64
    got = forward_visible(model, images(320, 320, batch=1), layout)
    assert torch.allclose(got, dense_reference(model, images(320, 320, batch=1), seen), rtol=1e-9)


OPTIONS = [("secvit_tiny", options) for options in ABLATIONS.values()] + [
    (name, options) for name in NAMES for options in ({}, {"lce": True, "cpe": True, "rope": True})
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_masked_pixels_change_exactly_nothing(name, options, ratio):
    """Not even where they are NaN, and not through the stem, whose last layer reads 7 pixels over a unit's edge."""
    model = small(name, img_size=(96, 160), **options).float().train()
    layout, visible = layout_for(model, ratio=ratio)
    x = images(96, 160).float()
    pixels = visible.repeat_interleave(32, 0).repeat_interleave(32, 1)
    other = torch.where(pixels, x, torch.nan)
    assert torch.equal(forward_visible(model, x, layout), forward_visible(model, other, layout))


def test_images_of_a_batch_do_not_mix():
    model = small(img_size=(96, 128))
    layout, _ = layout_for(model)
    x = images(96, 128, batch=3)
    together = forward_visible(model, x, layout)
    for number in range(3):
        assert torch.allclose(forward_visible(model, x[number : number + 1], layout)[0], together[number], rtol=1e-9)


def test_batch_norm_takes_its_statistics_over_visible_places_and_moves_once_a_step():
    model = step_batch_norm(small(img_size=(64, 96)).train())
    norm = model.patch_embed.proj[1]
    before = norm.running_mean.clone()
    first, second = (layout_for(model, seed=seed) for seed in (1, 2))
    for layout, _ in (first, second):
        forward_visible(model, images(64, 96), layout)
    assert torch.equal(norm.running_mean, before)
    means = []
    for _, visible in (first, second):
        keep = visible.repeat_interleave(32, 0).repeat_interleave(32, 1)
        maps = model.patch_embed.proj[0](images(64, 96) * keep)
        means.append(maps[:, :, keep[::2, ::2]].mean((0, 2)))
    commit_step_statistics(model, world_size=1)
    expected = before.lerp(torch.stack(means).mean(0), norm.momentum)
    assert torch.allclose(norm.running_mean, expected, rtol=1e-9)


def test_recomputing_blocks_changes_nothing():
    model, found = small(img_size=(64, 64)).train(), []
    layout, _ = layout_for(model)
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        forward_visible(model, images(), layout).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_dense_way_sees_no_masked_pixel_and_all_units(name):
    model = small(name, img_size=(64, 96))
    visible = torch.tensor([[True, False, True], [False, False, True]])
    token = torch.randn(1, 1, 1, mask_token_dim(model), dtype=torch.float64)
    x = images(64, 96)
    pixels = visible.repeat_interleave(32, 0).repeat_interleave(32, 1)
    got = forward_masked(model, x, visible, token)
    assert got.shape == (2, 6, 128)
    assert torch.equal(got, forward_masked(model, torch.where(pixels, x, torch.nan), visible, token))
    everything = forward_masked(model, x, torch.ones_like(visible), token)
    assert torch.allclose(everything, model.forward_features(x).flatten(2).mT, rtol=1e-9)


def test_bf16_autocast_is_close_to_fp32():
    model = small(img_size=(96, 128)).float()
    layout, _ = layout_for(model)
    x = images(96, 128).float()
    expected = forward_visible(model, x, layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = forward_visible(model, x, layout)
    got.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    cosine = F.cosine_similarity(got.float().flatten(1), expected.flatten(1))
    assert cosine.min() > 0.99


def test_layout_of_an_image_of_the_published_size_has_all_levels():
    model = small(img_size=(224, 224))
    layout, visible = layout_for(model)
    assert [level.tile for level in layout.stages] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert {level.num_units for level in layout.stages} == {int(visible.sum())}
