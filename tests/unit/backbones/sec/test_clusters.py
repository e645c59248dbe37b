"""Clusters for the drawing: those that the networks compute, under their stages' numbers."""

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure

from backbones.commands.drawing import draw, random_layout
from backbones.sec.attention import similarity
from backbones.sec.clusters import clusters_of

NARROW = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}


@pytest.mark.parametrize("rope", [False, True])
def test_clusters_are_of_equal_size_and_those_that_the_attention_computes(rope, monkeypatch):
    torch.manual_seed(0)
    model = timm.create_model("secvit_tiny", num_classes=0, rope=rope, **NARROW)
    likeness = {}

    def spied(*args, **kwargs):
        found = similarity(*args, **kwargs)
        likeness[found.shape[-1]] = found[0]  # h n of the last layer with so many tokens
        return found

    monkeypatch.setattr("backbones.sec.attention.similarity", spied)
    found = clusters_of(model, torch.randn(1, 3, 224, 224))
    assert [clusters.number for clusters in found] == [32, 8, 2]
    for clusters in found:
        for head, cluster in enumerate(torch.from_numpy(clusters.cluster).flatten(1)):
            assert torch.equal(cluster.bincount(), torch.full((clusters.number,), 98))
            assert (cluster[likeness[len(cluster)][head].argsort(stable=True)].diff() >= 0).all()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sec_faster_vit_0", {"stem_dim": 8, "clusters": (1, 1, 4, 2)}, [(3, 4), (4, 2)]),
        ("secvit_tiny", {"clusters": (1, 8, 2, 1)}, [(2, 8), (3, 2)]),
        ("secvit_tiny", {"clusters": (1, 1, 200, 200)}, [(3, 16), (4, 4)]),  # no more than there are tokens
    ],
)
def test_clusters_know_their_stage_and_are_drawn_under_its_number(name, options, expected, monkeypatch, tmp_path):
    model = timm.create_model(name, num_classes=0, **{**NARROW, "num_heads": (1, 2, 2, 4), **options})
    found = clusters_of(model, torch.randn(1, 3, 64, 64))
    assert [(clusters.stage, clusters.number) for clusters in found] == expected
    assert all(clusters.cluster.max() == clusters.number - 1 for clusters in found)
    titles = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: titles.extend(a.get_title() for a in self.axes))
    layout = random_layout("swin_tiny_patch4_window7_224", img_size=(64, 64), mask_ratio=0.5, seed=0)
    draw(np.zeros((64, 64, 3), np.uint8), found, layout, title="", path=tmp_path / "picture.png")
    for column, (stage, number) in enumerate(expected, start=1):
        assert titles[column].startswith(f"stage {stage}, head 1: {number} clusters")


@pytest.mark.parametrize("sides", [(64, 64), (66, 64)])
def test_model_is_left_as_it_was_even_where_its_forward_fails(sides):
    model = timm.create_model("secvit_tiny", stem="patch", **NARROW).train()
    if sides == (64, 64):
        clusters_of(model, torch.randn(1, 3, *sides))
    else:
        with pytest.raises(ValueError, match="takes images of multiples of 4 pixels"):
            clusters_of(model, torch.randn(1, 3, *sides))
    assert model.training
    assert model.layers[0].training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_network_without_clusters_is_refused():
    model = timm.create_model("secvit_tiny", attention="window", **NARROW)
    with pytest.raises(
        ValueError, match="this network has no attention in clusters; choose a network such as secvit_tiny"
    ):
        clusters_of(model, torch.randn(1, 3, 224, 224))
