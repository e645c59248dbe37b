"""Sizes in the words of every family: timm takes them, and what a family has not is refused."""

import pytest

from backbones.arguments import timm_arguments
from backbones.config import BackboneConfig, SecConfig
from backbones.weights.handoff import skeleton
from engine.errors import UserError

SIZES = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4), "window": 4},
    "vit_tiny_patch16_224": {"embed_dim": 48, "depths": (3,), "num_heads": (4,)},
    "twins_svt_small": {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8), "window": 4},
    "convnext_tiny": {"embed_dim": 16, "depths": (1, 2, 1, 1)},
    "xformer": {"embed_dim": 16, "depths": (1, 2, 1)},
    "sec_swin_tiny": {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 4)},
    "sec_faster_vit_0": {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 4)},
    "secvit_tiny": {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 4)},
}


@pytest.mark.parametrize("name", list(SIZES))
def test_timm_makes_the_sizes_asked_for(name):
    sizes = SIZES[name]
    model = skeleton(name, **timm_arguments(BackboneConfig(name=name, img_size=(64, 96), **sizes)))
    assert model.feature_info[0]["num_chs"] == sizes["embed_dim"]
    attentions = [module for path, module in model.named_modules() if path.endswith("attn")]
    if "num_heads" in sizes:
        assert {attn.num_heads for attn in attentions} == set(
            sizes["num_heads"][-2:] if "faster" in name else sizes["num_heads"]
        )
    if name.startswith("vit"):
        assert len(model.blocks) == 3


def test_xformers_widths_keep_the_published_proportions():
    published = timm_arguments(BackboneConfig(name="xformer", img_size=(256, 256), embed_dim=32))
    whole, same = skeleton("xformer"), skeleton("xformer", **published)
    assert {n: p.shape for n, p in same.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("vit_tiny_patch16_224", {"depths": (2, 2)}, r"backbone.depths: a plain ViT has one stage.*got \(2, 2\)"),
        ("vit_tiny_patch16_224", {"window": 7}, "backbone.window: a plain ViT has no such size, got 7; leave it out"),
        ("convnext_tiny", {"num_heads": (1, 2, 3, 4)}, "backbone.num-heads: a ConvNeXt has no such size"),
        ("convnext_tiny", {"depths": (1,)}, r"backbone.depths: a ConvNeXt has 4 stages, so 4 .* got 1: \(1,\)"),
        ("secvit_tiny", {"window": 7}, "backbone.window: a backbone with attention in clusters has no such size"),
        ("xformer", {"window": 7}, "backbone.window: XFormer has no such size"),
        ("xformer", {"embed_dim": 7}, "half as wide as its first stage, got 7; use even"),
    ],
)
def test_sizes_that_a_family_has_not_are_refused(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        timm_arguments(BackboneConfig(name=name, **sizes))


def test_options_of_sec_reach_secvit_and_are_refused_elsewhere():
    options = SecConfig(version=1, cpe=False, clusters=(4, 2, 1, 1), attention="cswin")
    found = timm_arguments(BackboneConfig(name="secvit_tiny", sec=options))
    assert found == {
        "img_size": (224, 224),
        "version": 1,
        "cpe": False,
        "clusters": (4, 2, 1, 1),
        "attention": "cswin",
    }
    with pytest.raises(ValueError, match=r"backbone.sec.global-token: swin_tiny_\S+ has no such option; leave it out"):
        timm_arguments(BackboneConfig(name="swin_tiny_patch4_window7_224", sec=SecConfig(global_token="q")))
    with pytest.raises(ValueError, match=r"backbone.sec.stem, backbone.sec.version: sec_swin_tiny has no such option"):
        timm_arguments(BackboneConfig(name="sec_swin_tiny", sec=SecConfig(version=2, stem="conv", rope=True)))


@pytest.mark.parametrize("size", [(0, 224), (224, -1), (224, 10**6)])
def test_sizes_that_no_image_has_are_refused(size):
    with pytest.raises(UserError, match=r"backbone\.img-size must be"):
        BackboneConfig(img_size=size)
