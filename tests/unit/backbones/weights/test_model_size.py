"""Counted sizes: equal to sums by hand and to a real forward, with attention's products told apart."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.weights.model_size import measure

SHALLOW = {"swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)}, "xformer": {"depths": (1, 1, 1)}}


def test_counts_of_a_vit_equal_the_sum_by_hand():
    size = measure("vit_tiny_patch16_224", depth=2, num_classes=7, img_size=(64, 96))
    dim, patches = 192, 24
    tokens, hidden, pixels = patches + 1, 4 * dim, 3 * 16 * 16
    weights = 3 * dim * dim + dim * dim + 2 * dim * hidden
    assert size.attention_macs == 2 * 2 * tokens * tokens * dim
    assert size.macs == 2 * tokens * weights + size.attention_macs + patches * dim * pixels + 7 * dim
    block = weights + 3 * dim + dim + hidden + dim + 4 * dim  # with biases and norms
    ends = dim * pixels + dim + dim + tokens * dim + 2 * dim + 7 * dim + 7
    assert size.parameters == 2 * block + ends
    assert (size.img_size, size.strides, size.channels) == ((64, 96), (16,), (192,))


@pytest.mark.parametrize("name", list(SHALLOW))
def test_counts_are_those_of_a_real_forward(name):
    model = timm.create_model(name, img_size=64, **SHALLOW[name]).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    size = measure(name, img_size=(64, 64), **SHALLOW[name])
    assert 2 * size.macs == counter.get_total_flops()
    assert 0 < size.attention_macs < size.macs
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_own_image_size_is_taken_without_another():
    size = measure("xformer")
    assert (size.img_size, size.parameters, size.strides) == ((256, 256), 5_476_417, (2, 4, 8, 16, 32))


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="timm has no architecture 'xformr'"):
        measure("xformr")
