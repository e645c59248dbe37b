"""First weights for masked image modelling."""

import pytest
import timm
import torch
from torch import nn

from backbones.build import pretrainable
from backbones.ops.positions import sine_cosine_position
from backbones.weights.initial import init_mim

SIZES = {"embed_dim": 32, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "num_classes": 0}


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_weights_are_xavier_uniform_biases_zero_and_tables_narrow(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **SIZES)
    init_mim(model, special=pretrainable(model).first_weights)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.weight.numel() > 1000]
    for linear in linears:
        fan_out, fan_in = linear.weight.flatten(1).shape
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert linear.bias is None or not linear.bias.any()
    tables = [p for n, p in model.named_parameters() if n.endswith("relative_position_bias_table")]
    assert all(0.015 < table.std() < 0.025 for table in tables)


def test_norms_start_as_identity_but_those_after_swin_v2s_branches_at_zero():
    one = timm.create_model("swin_tiny_patch4_window7_224", **SIZES)
    two = timm.create_model("swinv2_tiny_window8_256", **SIZES)
    for model in (one, two):
        init_mim(model, special=pretrainable(model).first_weights)
        assert (model.norm.weight == 1).all()
        assert not model.norm.bias.any()
    assert (one.layers[0].blocks[0].norm1.weight == 1).all()
    assert not two.layers[0].blocks[0].norm1.weight.any()


def test_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        model = timm.create_model("swin_tiny_patch4_window7_224", **SIZES)
        torch.manual_seed(7)
        init_mim(model, special=pretrainable(model).first_weights)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_positions_of_a_vit_start_as_sines_and_cosines_of_their_places():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=1, reg_tokens=2)
    init_mim(model, special=pretrainable(model).first_weights)
    positions = model.pos_embed[0]
    assert torch.equal(positions[:3], torch.zeros(3, 192))
    assert torch.equal(positions[3:], sine_cosine_position((4, 6), 192)[0])
    assert 0.01 < model.cls_token.std() < 0.03
