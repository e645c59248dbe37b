"""SecViT: the published sizes to the last digit, the published listing's numbers, timm's contract."""

import jaxtyping
import numpy as np
import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from backbones.sec.secvit import CLUSTERS
from backbones.weights.handoff import skeleton
from backbones.weights.key_names import to_timm
from backbones.weights.model_size import measure
from benchmarks.steps.plain_secvit import PlainSecViT

SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 4, 4), "drop_path_rate": 0.0}
PUBLISHED = {
    "tiny": {
        2: 14_981_800,
        1: 13_832_104,
        "stages": (166_016, 643_328, 7_259_136, 5_322_752),
        "stem": 38_208,
        "projection": 527_360,
        "macs": (2.494, 2.707),
    },
    "small": {
        2: 26_776_104,
        1: 25_516_968,
        "stages": (211_968, 990_976, 13_337_088, 10_645_504),
        "stem": 38_208,
        "projection": 527_360,
        "macs": (4.347, 4.733),
    },
    "base": {
        2: 54_682_776,
        1: 53_223_960,
        "stages": (396_640, 2_609_600, 28_765_696, 21_299_200),
        "stem": 59_280,
        "projection": 527_360,
        "macs": (9.633, 10.370),
    },
    "large": {
        2: 96_495_096,
        1: 94_883_704,
        "stages": (763_168, 5_058_368, 55_697_280, 33_177_600),
        "stem": 115_248,
        "projection": 658_432,
        "macs": (18.298, 19.326),
    },
}


def small(name="secvit_tiny", *, seed=0, **changes):
    """Make a narrow network in float64 with nothing at a value that would hide a mistake."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**SMALL, "num_classes": 0, **changes}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
    return model


def images(height=64, width=64, *, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=generator)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


@pytest.mark.parametrize("size", list(PUBLISHED))
@pytest.mark.parametrize("version", [1, 2])
def test_parameters_are_those_of_the_published_models(size, version):
    assert count(skeleton(f"secvit_{size}", version=version)) == PUBLISHED[size][version]


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_parameters_of_each_part_are_the_published_ones(size):
    model, published = skeleton(f"secvit_{size}"), PUBLISHED[size]
    assert count(model.patch_embed) == published["stem"]
    downsampled = [*(count(stage.downsample) for stage in model.layers[1:]), 0]  # there, part of the stage before
    stages = [count(stage.blocks) + after for stage, after in zip(model.layers, downsampled, strict=True)]
    assert tuple(stages) == published["stages"]
    assert count(model.proj) + count(model.norm) == published["projection"]
    assert count(model.head) == 1_025_000


@pytest.mark.parametrize(
    "size", ["tiny", "small", *(pytest.param(s, marks=pytest.mark.slow) for s in ("base", "large"))]
)
def test_macs_are_the_published_ones(size):
    """The published total has the products with the global token, too, which are no matrix product here."""
    counted, model = measure(f"secvit_{size}"), skeleton(f"secvit_{size}")
    products = sum(
        len(stage.blocks) * info["num_chs"] * (224 // info["reduction"]) ** 2
        for stage, info, clusters in zip(model.layers, model.feature_info, CLUSTERS, strict=True)
        if clusters > 1
    )
    without, total = PUBLISHED[size]["macs"]
    assert (counted.macs - counted.attention_macs) / 1e9 == pytest.approx(without, abs=6e-4)
    assert (counted.macs + products) / 1e9 == pytest.approx(total, abs=6e-4)


@pytest.mark.parametrize("name", ["secvit_tiny", "secvit_base"])
def test_features_and_logits_equal_the_published_listing(name):
    """Loaded with its weights under their published names; at 224 px each cluster has 98 tokens."""
    sizes = {"embed_dim": (16, 16, 32, 32)} if name == "secvit_base" else {}
    model = small(name, num_classes=5, **{**SMALL, **sizes})
    plain = PlainSecViT(model).double().eval()
    state = plain.state_dict()
    with torch.no_grad():
        for key, value in state.items():
            if value.is_floating_point() and not key.endswith("angle"):
                value.copy_(0.1 * torch.randn_like(value) + (1 if "running_var" in key else 0)).abs_()
    plain.load_state_dict(state)
    translated = to_timm(state, keep_classifier=True)
    assert translated.naming == "secvit"
    model.load_state_dict(translated.state)
    x = images(224, 224, batch=1)
    with torch.no_grad():
        assert torch.allclose(model.forward_features(x), plain.forward_features(x), rtol=1e-9)
        assert torch.allclose(model(x), plain(x), rtol=1e-9)


def test_gradients_equal_those_of_the_published_listing():
    model = small()
    plain = PlainSecViT(model).double().eval()
    model.load_state_dict(to_timm(plain.state_dict()).state)
    x = images(224, 224, batch=1)
    for net in (model, plain):
        net.forward_features(x).square().mean().backward()
    wanted = to_timm({name: parameter.grad for name, parameter in plain.named_parameters()}).state
    for name, parameter in model.named_parameters():
        assert (parameter.grad - wanted[name]).abs().max() < 1e-6 * wanted[name].abs().max(), name


def test_first_weights_are_normal_and_biases_zero():
    torch.manual_seed(0)
    model = timm.create_model("secvit_tiny", num_classes=10)
    block = model.layers[2].blocks[0]
    for layer in (
        block.attn.qkv,
        block.ffn.dwconv,
        model.patch_embed.proj[3],
        model.head,
        model.layers[3].downsample.reduction,
    ):
        assert layer.weight.detach().std() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    assert all((timm.create_model("secvit_base", num_classes=0).layers[3].blocks[0].gamma_1 == 1e-6).tolist())


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (50, 75), (32, 32)])
def test_any_image_size_gives_maps_of_the_strides(size):
    model = small()
    with torch.no_grad():
        last, maps = model.forward_intermediates(images(*size))
        assert torch.equal(last, model.forward_features(images(*size)))
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-side // 2**i) for side in size) for i in range(2, 6)]
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]


def test_feature_maps_are_those_of_the_whole_model():
    model = small()
    network = timm.create_model("secvit_tiny", features_only=True, out_indices=(0, 2), **SMALL).double().eval()
    network.model.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        expected = model.forward_intermediates(images(), indices=[0, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(network(images()), expected, strict=True))
    assert network.feature_info.channels() == [16, 64]
    assert network.feature_info.reduction() == [4, 16]
    assert len(network.model.layers) == 3


def test_head_comes_with_classes_and_goes_without():
    model = small()
    assert [n for n, _ in model.named_parameters() if n.startswith(("proj", "norm", "head"))] == []
    assert model(images()).shape == (2, 128)
    model.reset_classifier(7)
    model.double().eval()
    assert model(images()).shape == (2, 7)
    assert model.forward_head(model.forward_features(images()), pre_logits=True).shape == (2, model.head_hidden_size)
    projection = model.proj
    model.reset_classifier(3)
    assert model.proj is projection
    model.reset_classifier(0, "")
    assert model(images()).shape == (2, 128, 2, 2)
    assert model.get_classifier() is None


@pytest.mark.parametrize("name", ["secvit_tiny", "sec_faster_vit_0"])
@pytest.mark.parametrize("convert", [convert_sync_batchnorm, freeze_batch_norm_2d])
def test_the_head_keeps_its_norm_whatever_its_batch_norm_became(name, convert):
    model = small(name, num_classes=5)
    expected = model(images())
    assert torch.allclose(convert(model).eval()(images()), expected)


def test_a_new_classifier_has_the_networks_type_and_a_refused_one_changes_nothing():
    model = small(num_classes=5)
    model.reset_classifier(3)
    assert model(images()).dtype == torch.float64
    with pytest.raises(ValueError, match="global_pool is avg, or nothing for a map, got 'max'"):
        model.reset_classifier(7, "max")
    assert (model.num_classes, model.global_pool, model(images()).shape[-1]) == (3, "avg", 3)


def test_first_version_has_its_own_head_and_no_rotation():
    model = small(version=1, num_classes=5)
    assert model.proj is None
    assert model.norm.num_features == model.num_features
    block = model.layers[0].blocks[0]
    assert block.ffn.dwconv is None
    assert not model.layers[0].rope
    assert model(images()).shape == (2, 5)


ABLATIONS = {
    "cpe": {"cpe": False},
    "lce": {"lce": False},
    "stem": {"stem": "patch"},
    "rope": {"rope": False},
    "clusters": {"clusters": (8, 4, 2, 1)},
    "global token": {"global_token": "q"},
    "window": {"attention": "window", "window_size": 2},
    "cswin": {"attention": "cswin"},
    "first version": {"version": 1},
}


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=list(ABLATIONS))
def test_every_option_changes_what_is_computed(changes):
    changed, model = small(**changes), small()
    model.load_state_dict(
        {**model.state_dict(), **{k: v for k, v in changed.state_dict().items() if "patch_embed" not in k}}
    )
    if "stem" not in changes:
        model.patch_embed.load_state_dict(changed.patch_embed.state_dict())
    with torch.no_grad():
        assert not torch.allclose(changed(images(128, 128)), model(images(128, 128)), rtol=1e-3)


def test_patch_stem_refuses_what_patches_do_not_divide():
    with pytest.raises(ValueError, match=r"multiples of 4 pixels, got 50x64"):
        small(stem="patch")(images(50, 64))


def test_recomputing_blocks_changes_nothing():
    model, found = small().train(), []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        model(images()).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_layer_groups_rise_from_stem_to_head():
    from engine.loop.optimizer import layer_ids

    model = timm.create_model("secvit_tiny", num_classes=4)
    ids = layer_ids(model)
    assert {ids[n] for n in ids if n.startswith("patch_embed")} == {0}
    assert ids["layers.1.downsample.reduction.weight"] == ids["layers.0.blocks.1.attn.qkv.weight"] == 2
    assert ids["layers.3.blocks.1.ffn.fc1.weight"] == 15
    assert {ids[n] for n in ids if n.startswith(("proj", "norm", "head"))} == {16}


def test_scales_are_not_decayed():
    assert {name.rpartition(".")[2] for name in skeleton("secvit_base").no_weight_decay()} == {"gamma_1", "gamma_2"}


def test_stochastic_depth_rises_to_its_published_rate():
    model = skeleton("secvit_small")
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.15, 29).tolist())


@pytest.mark.parametrize("name", ["secvit_tiny", "sec_swin_tiny", "sec_faster_vit_0"])
def test_a_pruned_network_gives_the_map_of_its_last_stage(name):
    model = small(name)
    expected = model.forward_intermediates(images(64, 96), intermediates_only=True)[1]
    model.prune_intermediate_layers([1])
    assert torch.equal(model(images(64, 96)), expected)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("secvit_tiny", {"depths": (1, 1, 1)}, r"depths takes 4 numbers from 1 on, .*got \(1, 1, 1\)"),
        ("sec_swin_tiny", {"num_heads": (2, 2, 4)}, "num_heads takes 4 numbers"),
        ("sec_faster_vit_0", {"clusters": (2, 1)}, "clusters takes 4 numbers"),
        ("secvit_tiny", {"clusters": (-3, 0, 2, 1)}, "clusters takes 4 numbers from 1 on"),
        ("secvit_tiny", {"num_heads": (3, 2, 4, 4)}, "3 heads of 16 channels: expected a multiple of 12 channels, for"),
        ("secvit_tiny", {"attention": "cswin", "num_heads": (1, 2, 4, 4)}, "num_heads from 2 on"),
        ("secvit_tiny", {"global_pool": "max"}, "global_pool is avg, or nothing for a map, got 'max'"),
        ("secvit_tiny", {"clusters": ()}, r"clusters takes 4 numbers from 1 on, one for each stage, got \(\)"),
        ("sec_swin_tiny", {"clusters": ()}, "clusters takes 4 numbers"),
        ("sec_faster_vit_0", {"clusters": ()}, "clusters takes 4 numbers"),
        ("secvit_tiny", {"version": 3}, "version is 1 or 2, got 3"),
        ("secvit_tiny", {"stem": "linear"}, "stem is 'conv' or 'patch', got 'linear'"),
        ("secvit_tiny", {"attention": "swin"}, "attention is 'sec' or 'window' or 'cswin', got 'swin'"),
        ("secvit_tiny", {"window_size": 0}, "window_size is a number from 1 on, got 0"),
        ("secvit_tiny", {"scaled_stages": (2, 4)}, "scaled_stages is 0 or 1 or 2 or 3, got 4"),
        ("secvit_tiny", {"global_token": "v"}, "global_token is 'k' or 'q', got 'v'"),
        ("sec_swin_tiny", {"global_token": "v"}, "global_token is 'k' or 'q', got 'v'"),
        ("sec_faster_vit_0", {"global_token": "v"}, "global_token is 'k' or 'q', got 'v'"),
    ],
)
def test_sizes_and_options_that_there_are_not_are_refused(name, changes, words, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as in use: in tests annotations would speak first
    with pytest.raises(ValueError, match=words):
        timm.create_model(name, **{**SMALL, **changes})


def test_without_pooling_each_place_is_classified():
    model = small(num_classes=5, global_pool="")
    whole = model(images(64, 96))
    assert whole.shape == (2, 2, 3, 5)
    model.global_pool = "avg"
    torch.testing.assert_close(model(images(64, 96)), whole.mean((1, 2)))  # the classifier is linear
