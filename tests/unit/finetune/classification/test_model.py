"""The classifier of a timm network, and the linear probe's BatchNorm inside it."""

import pytest
import timm
import torch

from finetune.classification.model import add_probe_norm, classifier_name, plain_classifier

SMALL = {"img_size": 32, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}


def swin(**kwargs):
    return timm.create_model("swin_tiny_patch4_window7_224", **{**SMALL, "num_classes": 5, **kwargs})


@pytest.mark.parametrize(
    ("name", "head"),
    [("swin_tiny_patch4_window7_224", "head.fc"), ("resnet18", "fc"), ("vit_tiny_patch16_224", "head")],
)
def test_the_classifier_is_found_by_timms_name_for_it(name, head):
    with torch.device("meta"):
        assert classifier_name(timm.create_model(name)) == head


def test_a_folded_probe_is_an_ordinary_classifier_with_the_same_outputs():
    torch.manual_seed(0)
    probe = add_probe_norm(swin())
    norm = probe.get_submodule("head.fc.0")
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    plain = swin()
    plain.load_state_dict(plain_classifier(probe.state_dict(), name="head.fc"))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), probe.eval()(images), rtol=1e-4, atol=1e-5)


def test_an_ordinary_classifier_stays_as_it_is():
    state = swin().state_dict()
    assert plain_classifier(state, name="head.fc") is state
