import pytest
import timm
import torch

from backbones.weights.handoff import skeleton
from backbones.weights.key_names import to_microsoft, to_timm

SMALL = {
    "num_classes": 10,
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 8,
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 1, 2, 2),
}


def small_state(architecture="swin_tiny_patch4_window7_224"):
    return timm.create_model(architecture, **SMALL).state_dict()


@pytest.mark.parametrize("architecture", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_microsoft_layout_merges_at_the_end_of_a_stage(architecture):
    state = small_state(architecture)
    theirs = to_microsoft(state)
    for stage in (0, 1, 2):
        name = "downsample.reduction.weight"
        assert torch.equal(theirs[f"layers.{stage}.{name}"], state[f"layers.{stage + 1}.{name}"])
    assert "layers.3.downsample.reduction.weight" not in theirs
    assert torch.equal(theirs["head.weight"], state["head.fc.weight"])
    assert len(theirs) == len(state)


def test_timm_reads_the_microsoft_layout_as_the_same_network():
    model, other = (timm.create_model("swin_tiny_patch4_window7_224", **SMALL).eval() for _ in range(2))
    other.load_state_dict(timm.models.swin_transformer.checkpoint_filter_fn(to_microsoft(model.state_dict()), other))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), other(images))


@pytest.mark.parametrize("there", [dict, to_microsoft])
def test_coming_back_from_a_layout_changes_nothing_but_the_classifier(there):
    state = small_state()
    found = to_timm(there(state))
    expected = {name: value for name, value in state.items() if not name.startswith("head.")}
    assert set(found.state) == set(expected)
    assert all(torch.equal(found.state[name], value) for name, value in expected.items())
    assert len(found.left_out["the classifier"]) == 2


@pytest.mark.parametrize("there", [dict, to_microsoft])
def test_classifier_comes_back_when_it_is_kept(there):
    state = small_state()
    found = to_timm(there(state), keep_classifier=True)
    assert not found.left_out
    assert all(torch.equal(found.state[name], value) for name, value in state.items())


def test_row_by_row_merging_weights_compute_the_same_after_the_swap():
    state = small_state()
    merging = timm.create_model("swin_tiny_patch4_window7_224", **SMALL).layers[1].downsample
    merging.load_state_dict(
        {n.removeprefix("layers.1.downsample."): v for n, v in state.items() if "layers.1.down" in n}
    )
    x = torch.randn(2, 4, 6, 8)
    rows_first = torch.cat([x[:, 0::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2], x[:, 1::2, 1::2]], dim=-1)
    old = merging.reduction(merging.norm(rows_first))  # GreenMIM's module of 2022 with these weights
    found = to_timm(state, merge_order="official-2022").state
    merging.load_state_dict(
        {n.removeprefix("layers.1.downsample."): v for n, v in found.items() if "layers.1.down" in n}
    )
    torch.testing.assert_close(merging(x), old)


def test_pretraining_wrappers_and_parts_are_taken_off():
    state = {f"module.encoder.{name}": value for name, value in to_microsoft(small_state()).items()}
    state |= {"module.mask_token": torch.zeros(1), "module.decoder_blocks.0.norm1.weight": torch.zeros(1)}
    state["module.encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1)
    found = to_timm(state)
    assert found.naming == "microsoft"
    assert set(found.state) == {name for name in small_state() if not name.startswith("head.")}
    assert found.left_out["of pretraining only"] == ["mask_token", "decoder_blocks.0.norm1.weight"]
    assert len(found.left_out["computed by every model"]) == 1


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "secvit_tiny", "sec_swin_tiny"])
def test_other_architectures_have_no_microsoft_layout(architecture):
    with pytest.raises(ValueError, match="exists for Swin and Swin V2 only"):
        to_microsoft(skeleton(architecture).state_dict())
