"""Dense Swin with the windows of the true grid (equality with the reference: test_swin.py and test_swin_v2.py)."""

import copy
import re

import pytest
import timm
import torch

from backbones.ops.exact_windows import EXACT_BLOCKS, uneven_windows, use_exact_windows
from tests.unit.backbones.timm_models.dense_reference import forward_reference

SIZES = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "num_classes": 0}
NAMES = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]


def pair(name, **kwargs):
    """Two models to compare, timm's own and one with exact windows, with the same weights, none of them at zero."""
    torch.manual_seed(0)
    plain = timm.create_model(name, **SIZES, **kwargs).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return plain, use_exact_windows(copy.deepcopy(plain))


@pytest.mark.parametrize("name", NAMES)
def test_only_blocks_change_and_no_weight_does(name):
    plain, exact = pair(name)
    assert list(plain.state_dict()) == list(exact.state_dict())
    assert type(plain) is type(exact)
    changed = {type(module) for module in exact.modules()} - {type(module) for module in plain.modules()}
    assert changed <= set(EXACT_BLOCKS.values())
    assert len(changed) == 1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_equals_timm_bit_for_bit_where_nothing_is_padded_and_not_where_timm_pads(name):
    plain, exact = pair(name, img_size=224, window_size=7, strict_img_size=False)
    images = torch.randn(1, 3, 224, 448)
    assert torch.equal(plain(images), exact(images))
    images = torch.randn(1, 3, 256, 192)
    assert not torch.allclose(plain(images), exact(images), rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(160, 160), (192, 320), (68, 100)])
@torch.no_grad()
def test_image_sizes_other_than_the_models_own_get_exact_windows(name, size):
    _, exact = pair(name, img_size=224, window_size=7, strict_img_size=False)
    exact = exact.double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = forward_reference(exact, images, torch.ones(1, 1, dtype=torch.bool))
    got = exact.forward_features(images).flatten(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # from timm resizing bias tables
@torch.no_grad()
def test_set_input_size_keeps_windows_exact(name):
    _, exact = pair(name, img_size=224, window_size=7)
    exact.set_input_size((160, 256), window_size=7)
    images = torch.randn(1, 3, 160, 256)
    expected = forward_reference(exact, images, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(exact.forward_features(images).flatten(1, 2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_only_models_have_exact_windows_too(name):
    torch.manual_seed(0)
    kwargs = {**SIZES, "img_size": (128, 96), "window_size": 7}
    del kwargs["num_classes"]
    maps = use_exact_windows(timm.create_model(name, features_only=True, **kwargs)).eval()
    whole = use_exact_windows(timm.create_model(name, num_classes=0, **kwargs)).eval()
    whole.load_state_dict({k.replace("layers_", "layers."): v for k, v in maps.state_dict().items()}, strict=False)
    images = torch.randn(1, 3, 128, 96)
    last = whole.layers(whole.patch_embed(images))
    torch.testing.assert_close(maps(images)[-1], last)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_in_bf16(name):
    _, exact = pair(name, img_size=(100, 132), window_size=7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = exact(torch.randn(2, 3, 100, 132))
    out.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in exact.parameters() if parameter.grad is not None)


def on_meta(name, **model_args):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **model_args)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        (NAMES[0], (128, 128), None),
        (NAMES[0], (64, 64), None),  # timm cuts windows to small grids
        (NAMES[0], (160, 160), r"at 160x160 px its grids of 10x10, 5x5 tokens .* both agree at 128 or 256 px"),
        (NAMES[0], (128, 160), r"its grids of 8x10, 4x5 tokens .* both agree at 128x128 or 128x256 px"),
        ("swinv2_tiny_window8_256", (160, 160), r"both agree at 128 or 256 px"),
    ],
)
def test_sizes_at_which_timm_computes_otherwise_are_told(name, size, words):
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4}
    said = uneven_windows(on_meta(name, img_size=size, **small), size)
    assert said is None if words is None else re.search(words, said)


def test_windows_of_twins_are_looked_at_and_other_networks_have_none():
    said = uneven_windows(on_meta("twins_svt_small", img_size=256), (256, 256))
    assert said
    assert "both agree at 224 or 448 px" in said
    assert uneven_windows(on_meta("convnext_tiny"), (160, 160)) is None
