"""SegViT's heads: the cascade sums masks, Shrunk's layers do not, any size works, scores are as defined."""

import pytest
import torch
import torch.nn.functional as F

from finetune.segmentation.heads.atm_loss import Masks
from finetune.segmentation.heads.segvit import SegViTHead, ShrunkHead, combined

OPTIONS = {"dim": 16, "num_heads": 2, "num_classes": 3, "loss": "atm", "score_stride": 1}


def maps(*shapes):
    torch.manual_seed(0)
    return [torch.randn(2, *shape) for shape in shapes]


def test_the_cascade_starts_at_the_deepest_map_and_sums_its_masks():
    head = SegViTHead([8, 8], **OPTIONS).eval()
    shallow, deep = maps((8, 4, 5), (8, 4, 5))
    first, second = head.stages([shallow, deep])
    start = head.queries.weight.expand(2, -1, -1)
    queries, masks = head.cascade[0](start, head.projections[0](deep))[-1]
    assert torch.allclose(first.logits.flatten(2), masks)
    queries, more = head.cascade[1](queries, head.projections[1](shallow))[-1]
    assert torch.allclose(second.logits.flatten(2), masks + more, atol=1e-6)
    assert torch.allclose(second.classes, head.classes(queries))


def test_maps_of_other_resolutions_are_summed_at_the_finer_one():
    head = SegViTHead([4, 8], **OPTIONS).eval()
    fine, coarse = maps((4, 6, 10), (8, 3, 5))
    first, second = head.stages([fine, coarse])
    assert first.logits.shape == (2, 3, 3, 5)
    assert second.logits.shape == (2, 3, 6, 10)


@pytest.mark.parametrize("size", [(33, 47), (64, 80)])
def test_scores_take_the_size_of_the_image(size):
    head = SegViTHead([8], **OPTIONS).eval()
    scores = head.scores(maps((8, 3, 5)), size)
    assert scores.shape == (2, 3, *size)


def test_scores_are_sums_over_queries_of_class_share_times_mask():
    head = SegViTHead([8], **OPTIONS).eval()
    features = maps((8, 3, 4))
    last: Masks = head.stages(features)[-1]
    masks = F.interpolate(last.logits, (12, 16), mode="bilinear", align_corners=False).sigmoid()
    expected = torch.zeros(2, 3, 12, 16)
    for query in range(3):
        for name in range(3):
            expected[:, name] += last.classes.softmax(-1)[:, query, name, None, None] * masks[:, query]
    torch.testing.assert_close(head.scores(features, (12, 16)), expected)


def test_a_stride_of_scores_changes_their_cost_and_hardly_the_scores():
    head = SegViTHead([8], **OPTIONS).eval()
    features = maps((8, 3, 4))
    exact = head.scores(features, (48, 64))
    head.score_stride = 4
    assert (head.scores(features, (48, 64)) - exact).abs().max() < 0.05


def test_shrunk_gives_each_layer_a_loss_and_sums_nothing():
    head = ShrunkHead([8, 8], grid=(4, 6), **OPTIONS).eval()
    fine, coarse = maps((8, 4, 6), (8, 2, 3))
    found = head.stages([fine, coarse])
    assert [stage.logits.shape for stage in found] == [(2, 3, 4, 6)] * 3
    tokens = head.places.weight.expand(2, -1, -1)
    for features, project, decoder in zip([fine, coarse], head.projections, head.upsampling, strict=True):
        tokens = decoder(tokens, project(features))
    layers = head.stage(head.queries.weight.expand(2, -1, -1), tokens)
    for stage, (queries, masks) in zip(found, layers, strict=True):
        torch.testing.assert_close(stage.logits.flatten(2), masks)
        torch.testing.assert_close(stage.classes, head.classes(queries))


def test_shrunks_queries_are_resized_for_other_images():
    head = ShrunkHead([8, 8], grid=(4, 6), **OPTIONS).eval()
    (last, *_) = head.stages(maps((8, 5, 3), (8, 3, 2)))
    assert last.logits.shape == (2, 3, 5, 3)


@pytest.mark.parametrize("make", [lambda o: SegViTHead([8, 8], **o), lambda o: ShrunkHead([8, 8], grid=(4, 6), **o)])
@pytest.mark.parametrize("loss", ["atm", "ce"])
def test_every_parameter_of_a_head_learns(make, loss):
    head = make({**OPTIONS, "loss": loss})
    label_maps = torch.randint(0, 3, (2, 16, 24))
    shown = torch.tensor([(i, c) for i in range(2) for c in range(3)])
    head.loss(maps((8, 4, 6), (8, 2, 3)), label_maps, shown)["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())


def test_no_object_gives_no_score():
    classes = torch.tensor([[[0.0, 0.0, 50.0], [50.0, 0.0, 0.0]]])
    scores = combined(classes, torch.ones(1, 2, 1, 1))
    torch.testing.assert_close(scores.flatten(), torch.tensor([1.0, 0.0]))
