"""Probes against plain definitions."""

import math

import pytest
import torch
from torch.nn import functional as F

from engine.probes import extract_features, knn_accuracy, linear_probe_accuracy, pixel_features


def clusters(n, *, classes=5, dim=16, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


def brute_force_knn(train_x, train_y, test_x, test_y, *, k, temperature):
    right = 0
    for x, label in zip(test_x, test_y, strict=True):
        similarity = [float(F.cosine_similarity(x.double(), t.double(), dim=0)) for t in train_x]
        nearest = sorted(range(len(train_x)), key=lambda i: -similarity[i])[:k]
        votes = {}
        for i in nearest:
            votes[int(train_y[i])] = votes.get(int(train_y[i]), 0) + math.exp(similarity[i] / temperature)
        right += max(votes, key=lambda c: votes[c]) == int(label)
    return right / len(test_x)


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_knn_equals_brute_force(k, temperature):
    train, test = clusters(120, spread=2.0), clusters(60, spread=2.0, seed=1)
    expected = brute_force_knn(*train, *test, k=k, temperature=temperature)
    assert 0.3 < expected < 0.95
    for chunk_size in (7, 1024):
        found = knn_accuracy(*train, *test, k=k, temperature=temperature, num_classes=5, chunk_size=chunk_size)
        assert found == expected


def test_knn_is_blind_to_length_and_takes_fewer_samples_than_k():
    train, test = clusters(12, spread=0.1), clusters(10, spread=0.1, seed=1)
    scaled = (train[0] * torch.rand(12, 1).add(0.1) * 1000, train[1])
    assert knn_accuracy(*scaled, *test, num_classes=5) == knn_accuracy(*train, *test, num_classes=5)


def test_linear_probe_separates_what_is_separable_and_guesses_what_is_not():
    train, test = clusters(300, spread=0.3), clusters(100, spread=0.3, seed=1)
    assert linear_probe_accuracy(*train, *test, num_classes=5, steps=100) > 0.97
    noise = torch.randn(300, 16, generator=torch.Generator().manual_seed(3))
    assert linear_probe_accuracy(noise, train[1], torch.randn(100, 16), test[1], num_classes=5, steps=50) < 0.45


def test_linear_probe_is_blind_to_scale_and_shift_of_each_feature():
    train, test = clusters(300, spread=1.5), clusters(100, spread=1.5, seed=1)
    scale, shift = torch.logspace(-3, 3, 16), torch.linspace(-100, 100, 16)
    plain = linear_probe_accuracy(*train, *test, num_classes=5, steps=100)
    moved = linear_probe_accuracy(
        train[0] * scale + shift * scale, train[1], test[0] * scale + shift * scale, test[1], num_classes=5, steps=100
    )
    assert abs(moved - plain) <= 0.03


def test_linear_probe_repeats_and_leaves_the_global_random_state_alone():
    train, test = clusters(300, spread=2.0), clusters(200, spread=2.0, seed=1)
    state = torch.get_rng_state()
    kwargs = {"num_classes": 5, "steps": 30, "batch_size": 64}
    first = linear_probe_accuracy(*train, *test, **kwargs)
    torch.rand(5)
    assert linear_probe_accuracy(*train, *test, **kwargs) == first
    torch.set_rng_state(state)
    linear_probe_accuracy(*train, *test, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)


def test_extracted_features_keep_the_order_and_become_float32():
    images = torch.arange(5 * 3 * 8 * 8).reshape(5, 3, 8, 8).to(torch.uint8)
    batches = [
        {"images": images[:3], "labels": torch.tensor([0, 1, 2])},
        {"images": images[3:], "labels": torch.tensor([3, 4])},
    ]
    features, labels = extract_features(lambda x: x.double(), batches, "cpu")
    assert features.dtype == torch.float32
    assert torch.equal(features, images.flatten(1).float())
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="at least one labelled image"):
        extract_features(lambda x: x, [], "cpu")


def test_pixel_features_are_area_means_standardised_per_image():
    images = torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8)
    features = pixel_features(images)
    assert features.shape == (4, 192)
    assert torch.allclose(features.mean(1), torch.zeros(4), atol=1e-5)
    assert torch.allclose(features.std(1), torch.ones(4), atol=1e-4)
    cell = images[0, 0, :2, :3].float().mean()
    other = images[0, 1, 2:4, 3:6].float().mean()
    small = F.interpolate(images.float(), (8, 8), mode="area")[0]
    assert torch.allclose(small[0, 0, 0], cell)
    assert torch.allclose(small[1, 1, 1], other)
    grey = pixel_features(torch.full((1, 3, 8, 8), 7, dtype=torch.uint8))
    assert torch.equal(grey, torch.zeros(1, 192))
