"""SEC-FasterViT, a reconstruction: convolutions, then attention in clusters, and sizes that follow from the design."""

import pytest
import timm
import torch

from backbones.sec.attention import SecAttention
from backbones.weights.handoff import skeleton
from tests.unit.backbones.sec.test_secvit import images

NARROW = {"embed_dim": 16, "stem_dim": 8, "num_heads": (2, 2, 4, 4)}


@pytest.mark.parametrize(("size", "parameters"), [(0, 23_637_800), (1, 39_068_968), (2, 56_441_448)])
def test_parameters_are_counted(size, parameters):
    assert sum(p.numel() for p in skeleton(f"sec_faster_vit_{size}").parameters()) == parameters


def test_stages_1_and_2_are_convolutional_and_3_and_4_attend_in_two_clusters_and_in_one():
    model = skeleton("sec_faster_vit_0")
    counts = [[m.num_clusters for m in stage.modules() if isinstance(m, SecAttention)] for stage in model.layers]
    assert counts == [[], [], [2] * 6, [1] * 5]


def test_maps_have_the_usual_strides_and_recomputing_changes_nothing():
    torch.manual_seed(0)
    model = timm.create_model("sec_faster_vit_0", num_classes=3, drop_path_rate=0.0, **NARROW).double().train()
    maps = model.forward_intermediates(images(64, 96), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        model(images(64, 96)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
