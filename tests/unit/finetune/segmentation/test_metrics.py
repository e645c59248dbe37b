"""mIoU and accuracies against torchmetrics and a plain count."""

import pytest
import torch

from finetune.segmentation.labels import IGNORE_INDEX
from finetune.segmentation.metrics import confusion_matrix, segment_scores


def scores(confusion):
    return segment_scores(confusion, num_images=1, num_unreadable=0, num_empty=0, images_per_s=1.0)


@pytest.fixture
def maps():
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (3, 20, 30))
    labels[labels == 3] = 4  # a class that is never there but guessed; class 6 is neither
    labels[:, :4] = IGNORE_INDEX
    guesses = torch.where(torch.rand(3, 20, 30) < 0.6, labels.clamp(min=0), torch.randint(0, 6, (3, 20, 30)))
    return labels, guesses


def test_the_matrix_counts_valid_pixels_by_true_and_guessed_class(maps):
    labels, guesses = maps
    found = confusion_matrix(labels, guesses, num_classes=7)
    for true in range(7):
        for guessed in range(7):
            assert found[true, guessed] == ((labels == true) & (guesses == guessed)).sum()


def test_figures_equal_torchmetrics(maps):
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    labels, guesses = maps
    found = scores(confusion_matrix(labels, guesses, num_classes=7))
    options = {"num_classes": 7, "ignore_index": IGNORE_INDEX}
    assert found.miou == pytest.approx(multiclass_jaccard_index(guesses, labels, **options).item())
    each = multiclass_jaccard_index(guesses, labels, average="none", **options).tolist()
    assert [share or 0.0 for share in found.per_class] == pytest.approx(each)
    assert found.per_class[6] is None
    assert found.per_class[3] == 0
    assert found.pixel_accuracy == pytest.approx(
        multiclass_accuracy(guesses, labels, average="micro", **options).item()
    )


def test_matrices_of_parts_add_up(maps):
    labels, guesses = maps
    parts = [confusion_matrix(one, other, num_classes=7) for one, other in zip(labels, guesses, strict=True)]
    assert torch.equal(sum(parts), confusion_matrix(labels, guesses, num_classes=7))


def test_no_valid_pixel_at_all_gives_zeros():
    found = scores(
        confusion_matrix(torch.full((2, 2), IGNORE_INDEX), torch.zeros(2, 2, dtype=torch.int64), num_classes=3)
    )
    assert (found.miou, found.pixel_accuracy, found.per_class) == (0, 0, (None, None, None))
