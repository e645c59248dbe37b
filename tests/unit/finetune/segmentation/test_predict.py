"""Overlays mark the classes where they are, and say which they are."""

import numpy as np
import pytest
import torch

from finetune.network.start import resolve_start
from finetune.segmentation.config import SegmenterConfig
from finetune.segmentation.model import build_model
from finetune.segmentation.predict import draw_label_map, draw_similarities, has_queries, palette, predict_label_map

CLASSES = ("sky", "wall", "road")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)


def segmenter(config):
    return build_model(config, start=resolve_start(config.backbone), num_classes=3).eval()


def test_each_class_has_a_colour_of_its_own():
    assert len(np.unique(palette(150), axis=0)) == 150


def test_classes_are_tinted_void_is_left_and_names_stand_beside(image):
    label_map = np.full((40, 56), -1)
    label_map[:, :20], label_map[:, 20:30] = 0, 2
    drawn = np.asarray(draw_label_map(image, label_map, classes=CLASSES))
    assert drawn.shape[1] > 56
    assert np.array_equal(drawn[:40, 30:56], image[:, 30:])
    tint = drawn[:40, :20].astype(float) - 0.45 * image[:, :20]
    assert np.abs(tint - 0.55 * palette(3)[0]).max() <= 1
    assert (drawn[:40, 56:] != 255).any()


def test_label_maps_have_the_size_of_the_image(micro, image):
    found = predict_label_map(segmenter(micro()), image, config=micro())
    assert found.shape == (40, 56)
    assert set(np.unique(found)) <= {0, 1, 2}


def test_similarities_are_drawn_for_segvit_which_alone_has_queries(micro, image):
    drawn = draw_similarities(segmenter(micro()), image, config=micro(), classes=CLASSES)
    assert drawn.width == 3 * 56
    other = micro(segmenter=SegmenterConfig(head="all_mlp", dim=16))
    assert has_queries(segmenter(micro()))
    assert not has_queries(segmenter(other))
    assert torch.is_grad_enabled()
