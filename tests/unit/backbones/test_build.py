"""Building by timm's names, and what layouts need to know about a model."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from backbones.build import architecture, build, feature_dim, forward_visible, layout_spec
from backbones.config import BackboneConfig
from backbones.visible.layout import build_layout

SMALL = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
TINY = "swin_tiny_patch4_window7_224"


def test_timm_alone_makes_the_same_network_from_the_architecture():
    config = BackboneConfig(name=TINY, img_size=(128, 192), window=4, drop_path=0.1, **SMALL)
    model = build(config)
    name, model_args = architecture(model)
    assert (name, model_args) == architecture(config)
    plain = timm.create_model(name, num_classes=0, **model_args)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 128, 192)
    with torch.no_grad():
        assert plain.eval()(images).shape == model.eval()(images).shape


def test_spec_tells_windows_and_shifts_per_axis():
    spec = layout_spec(build(BackboneConfig(name=TINY, img_size=(224, 448), window=14, **SMALL)))
    assert (spec.units, spec.unit, spec.patch) == ((7, 14), (32, 32), (4, 4))
    assert [stage.grid for stage in spec.stages] == [(56, 112), (28, 56), (14, 28), (7, 14)]
    assert [stage.window for stage in spec.stages] == [(14, 14), (14, 14), (14, 14), (7, 14)]
    assert [stage.shifts for stage in spec.stages] == [((0, 0),), ((0, 0), (7, 7)), ((0, 0),), ((0, 0),)]
    assert [stage.channels for stage in spec.stages] == [16, 32, 64, 128]


def test_image_size_that_units_do_not_divide_is_refused_with_those_that_would_do():
    model = build(BackboneConfig(name=TINY, img_size=(240, 224), **SMALL))
    with pytest.raises(ValueError, match=r"240x224.*32x32 px; nearest that fit: height 224 or 256, width 224"):
        layout_spec(model)


@pytest.mark.parametrize("name", [TINY, "secvit_tiny", "xformer", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (60, 96)])
def test_images_of_another_size_than_the_layouts_are_refused_with_both(name, size):
    model = timm.create_model(name, img_size=(64, 96), num_classes=0)
    spec = layout_spec(model)
    layout = build_layout(spec, np.ones(spec.units, dtype=bool)).to("cpu")
    with pytest.raises(ValueError, match=f"images of {size[0]}x{size[1]} px, but the layout is of images of 64x96 px"):
        forward_visible(model, torch.zeros(1, 3, *size), layout)


def test_network_that_is_dense_only_says_so():
    model = build(BackboneConfig(name="mixer_s16_224"))
    assert feature_dim(model) == 512
    with pytest.raises(
        ValueError, match="MlpMixer cannot run on visible tokens only; these can: SwinTransformer, Swin"
    ):
        layout_spec(model)


def test_unknown_architecture_is_refused_with_near_ones():
    with pytest.raises(ValueError, match=r"'swin_tinny_patch4_window7_224'; did you mean swin_tiny_patch4_window7_224"):
        build(BackboneConfig(name="swin_tinny_patch4_window7_224"))


def test_folder_of_another_architecture_is_refused_with_both_names(tmp_path: Path, monkeypatch):
    class Stored:
        architecture = "swin_small_patch4_window7_224"

    monkeypatch.setattr("backbones.build.read_backbone", lambda folder: Stored())
    with pytest.raises(ValueError, match=rf"holds a {Stored.architecture}, but backbone.name is {TINY}"):
        build(BackboneConfig(name=TINY, init=tmp_path))
