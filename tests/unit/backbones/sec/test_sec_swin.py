"""SEC-Swin is timm's Swin with another attention.

It has the same parameters but the bias tables, and gives the same numbers in one window.
"""

import pytest
import timm
import torch

from backbones.weights.handoff import skeleton
from tests.unit.backbones.sec.test_secvit import images

NARROW = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 4), "drop_path_rate": 0.0}


def swins_name(name):
    return name.replace("attn.out_proj", "attn.proj").replace(".ffn.", ".mlp.").replace("head.", "head.fc.")


@pytest.mark.parametrize(("size", "parameters"), [("tiny", 28_265_032), ("small", 49_558_600)])
def test_parameters_are_swins_without_its_bias_tables(size, parameters):
    model, swin = skeleton(f"sec_swin_{size}"), skeleton(f"swin_{size}_patch4_window7_224")
    ours = {swins_name(name): parameter.shape for name, parameter in model.named_parameters()}
    theirs = {name: p.shape for name, p in swin.named_parameters() if not name.endswith("bias_table")}
    assert ours == theirs
    assert sum(shape.numel() for shape in ours.values()) == parameters


def test_numbers_are_swins_where_one_window_and_one_cluster_hold_everything():
    """28 px are grids of 7, 4, 2 and 1 tokens, whose last rows and columns are padded when cells are merged."""
    torch.manual_seed(0)
    model = timm.create_model("sec_swin_tiny", num_classes=3, clusters=(1, 1, 1, 1), **NARROW).double().eval()
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, img_size=28, **NARROW).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        state = {swins_name(name): value for name, value in model.state_dict().items()}
        for name, parameter in swin.named_parameters():
            parameter.copy_(state[name]) if name in state else parameter.zero_()
        x = images(28, 28)
        assert torch.allclose(model.forward_features(x), swin.forward_features(x).permute(0, 3, 1, 2), rtol=1e-9)
        assert torch.allclose(model(x), swin(x), rtol=1e-9)
        for options in ({}, {"norm": True}, {"norm": True, "indices": [1], "stop_early": True}):
            ours, theirs = (net.forward_intermediates(x, intermediates_only=True, **options) for net in (model, swin))
            assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(ours, theirs, strict=True))
        assert model.forward_intermediates(x, indices=[1], stop_early=True)[0].shape == (2, 32, 4, 4)


def test_features_end_with_a_norm_that_stays_without_classes():
    model = timm.create_model("sec_swin_tiny", num_classes=0, **NARROW)
    assert {"norm.weight", "norm.bias"} <= set(model.state_dict())
    assert model(images(64, 64).float()).shape == (2, 128)
    model.reset_classifier(4)
    assert model(images(64, 64).float()).shape == (2, 4)


@pytest.mark.parametrize("option", [{"rope": True}, {"cpe": True}, {"lce": True}, {"global_token": "q"}])
def test_options_change_what_is_computed(option):
    torch.manual_seed(0)
    changed = timm.create_model("sec_swin_tiny", num_classes=0, **NARROW, **option).eval()
    model = timm.create_model("sec_swin_tiny", num_classes=0, **NARROW).eval()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.load_state_dict({k: v for k, v in changed.state_dict().items() if k in model.state_dict()})
        x = images(64, 64).float()
        assert not torch.allclose(changed(x), model(x), rtol=1e-3)
