"""The reconstructed XFormer: its published and derived sizes, timm's contract, and every reading of its attention."""

import jaxtyping
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from backbones.xformer.xfa import FORMULAS
from backbones.xformer.xformer import XFormer, fold, unfold
from engine.loop.optimizer import layer_ids

TINY = {"widths": (8, 8, 12, 16, 16), "stem_width": 4, "embed_dims": (12, 12, 16), "depths": (1, 1, 1), "qkv_dim": 8}


def tiny(**changes):
    torch.manual_seed(0)
    return timm.create_model("xformer", num_classes=5, num_features=24, **{**TINY, **changes})


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_and_multiplications_are_those_of_the_reconstruction():
    model = timm.create_model("xformer").eval()
    assert count(model) == 5_476_417
    assert count(model.stem) == 464
    assert [count(stage) for stage in model.stages] == [6_096, 161_056, 635_042, 1_551_716, 2_377_363]
    assert [count(model.stages[i][1].layers[0]) for i in (2, 3, 4)] == [140_065, 223_393, 440_593]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(1.75, abs=0.005)


def test_other_attention_changes_the_parameters_by_little():
    counts = {formula: count(timm.create_model("xformer", attention=formula)) for formula in FORMULAS}
    assert counts == {"r1": 5_476_417, "r2": 5_475_580, "r3": 5_474_689, "softmax": 5_472_952}


@pytest.mark.parametrize("size", [(2, 4), (3, 4), (1, 1), (5, 3)])
def test_sequences_hold_the_tokens_of_one_place_in_the_patches_and_fold_back(size):
    x = torch.arange(2 * 3 * size[0] * size[1], dtype=torch.float32).view(2, 3, *size)
    sequences, real = unfold(x)
    assert torch.equal(fold(sequences, size), x)
    places = [x[1, :, row::2, col::2].flatten(1).T for row in (0, 1) for col in (0, 1)]
    for i, place in enumerate(places):
        kept = sequences[4 + i] if real is None else sequences[4 + i][real[4 + i]]
        assert torch.equal(kept, place)


@pytest.mark.parametrize("attention", list(FORMULAS))
def test_trains_with_every_attention(attention):
    model = tiny(attention=attention)
    images, labels = torch.randn(10, 3, 64, 64), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in model.named_parameters():
        unused_query = attention == "r2" and name.endswith("qkv.weight")
        assert parameter.grad is not None, name
        assert unused_query or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (75, 50), (32, 32)])
def test_any_image_size_gives_logits_and_maps_at_the_strides(size):
    model = tiny().eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        final, maps = model.forward_intermediates(images)
        assert model(images).shape == (2, 5)
        assert torch.equal(final, model.forward_features(images))
    assert [x.shape[1] for x in maps] == list(TINY["widths"])
    assert [x.shape[2:] for x in maps] == [tuple(-(-s // 2**i) for s in size) for i in range(1, 6)]


@pytest.mark.parametrize("last", [1, 4])
def test_stopping_early_gives_the_last_map_that_there_is(last):
    model = tiny().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        final, (found,) = model.forward_intermediates(images, indices=[last], stop_early=True)
        assert torch.equal(final, found if last == 1 else model.forward_features(images))
        (whole,) = model.forward_intermediates(images, indices=[last], intermediates_only=True)
    assert torch.equal(found, whole)


def test_features_only_gives_the_maps_of_the_stages():
    model = tiny().eval()
    features = tiny(features_only=True, out_indices=(2, 4)).eval()
    features.load_state_dict({k: v for k, v in model.state_dict().items() if k in features.state_dict()}, strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        got = features(images)
        expected = model.forward_intermediates(images, indices=[2, 4], intermediates_only=True)
    assert features.feature_info.reduction() == [8, 32]
    assert features.feature_info.channels() == [12, 16]
    assert [x.shape for x in got] == [x.shape for x in expected]


def test_classifier_can_be_replaced_and_removed():
    model = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)
    assert model.get_classifier() is model.head.fc
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    model.prune_intermediate_layers([1])
    assert [x.shape[1] for x in model.forward_intermediates(images, intermediates_only=True)] == [8, 8]
    assert model(images).shape == (2, 8, 16, 16)


def test_recomputing_gives_the_same_gradients_and_moves_batch_statistics_once():
    images = torch.randn(2, 3, 64, 64)
    gradients, buffers = [], []
    for enable in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        buffers.append(dict(model.named_buffers()))
    torch.testing.assert_close(*gradients)
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])


def test_layers_are_numbered_from_stem_to_head():
    model = tiny(depths=(2, 1, 1))
    ids = layer_ids(model)
    assert ids["stem.conv.weight"] == 0
    assert ids["stages.0.0.expand.conv.weight"] == 1
    assert ids["stages.2.1.layers.1.qkv.weight"] == ids["stages.2.0.expand.conv.weight"] + 1
    assert (
        ids["stages.4.1.fuse.conv.weight"] == ids["final_conv.conv.weight"] < ids["head.fc.weight"] == max(ids.values())
    )
    assert model.no_weight_decay() == {
        f"stages.{i}.1.layers.{j}.core.temperature" for i, j in [(2, 0), (2, 1), (3, 0), (4, 0)]
    }


def test_drop_path_rises_over_the_attention_layers():
    model = XFormer(drop_path_rate=0.2)
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for i in (2, 3, 4) for layer in model.stages[i][1].layers]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 9).tolist())


def test_other_output_formats_are_refused():
    with pytest.raises(ValueError, match="NCHW, got output_fmt 'NLC'"):
        tiny().forward_intermediates(torch.randn(1, 3, 64, 64), output_fmt="NLC")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (8, 8, 12, 16)}, r"widths takes 5 numbers above 0, one for each stage, got 4: \(8, 8, 12, 16\)"),
        ({"depths": (1, 1)}, r"depths takes 3 numbers above 0, one for each stage with attention, got 2: \(1, 1\)"),
        ({"depths": (1, 1, 1, 1)}, "depths takes 3 .* got 4: "),
        ({"depths": (1, 0, 1)}, "depths takes 3 numbers above 0"),
        ({"embed_dims": (12,)}, "embed_dims takes 3 .* got 1: "),
        ({"mlp_ratios": (2.0, 2.0)}, "mlp_ratios takes 3 .* got 2: "),
        ({"attention": "r4"}, "attention is 'r1' or 'r2' or 'r3' or 'softmax', got 'r4'"),
    ],
)
def test_sizes_and_attentions_that_there_are_not_are_refused(changes, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in use: in tests annotations speak first
    with pytest.raises(ValueError, match=words):
        tiny(**changes)
