"""Training micro-batches are pure functions of their number, and labels follow the images."""

import pickle

import torch

from data.shards.shard_set import open_shards
from finetune.classification.batches import TrainingBuilder
from finetune.classification.config import AugmentConfig

BUILDER = TrainingBuilder(
    seed=0, img_size=(32, 48), mean=(0.5, 0.5, 0.5), augment=AugmentConfig(), max_pixels=10_000_000
)


def samples_of(folder, numbers, *, repeat=0):
    shards = open_shards(folder)
    return [shards.read(n // 20, n % 20, repeat=repeat) for n in numbers]


def test_a_micro_batch_is_a_pure_function_of_its_number(train_shards):
    samples = samples_of(train_shards, range(4))
    one = BUILDER(samples, step=2, micro_batch=1)
    again = pickle.loads(pickle.dumps(BUILDER))(samples, step=2, micro_batch=1)
    other = BUILDER(samples, step=3, micro_batch=1)
    assert torch.equal(one["images"], again["images"])
    assert torch.equal(one["crops"], again["crops"])
    assert not torch.equal(one["crops"], other["crops"])
    assert one["images"].shape == (4, 3, 32, 48)
    assert one["images"].dtype == torch.uint8
    assert one["labels"].tolist() == [0, 1, 2, 3]
    assert one["ids"].tolist() == [0, 1, 2, 3]


def test_repeats_of_a_sample_get_other_crops(train_shards):
    first = BUILDER(samples_of(train_shards, [0]), step=0, micro_batch=0)
    second = BUILDER(samples_of(train_shards, [0], repeat=1), step=0, micro_batch=0)
    assert not torch.equal(first["crops"], second["crops"])


def test_an_unreadable_image_is_replaced_with_its_label(write, tmp_path):
    folder = write(tmp_path / "broken", first=0, count=4, broken=(1,))
    batch = BUILDER(samples_of(folder, range(4)), step=0, micro_batch=0)
    assert batch["labels"].tolist() == [0, 2, 2, 3]
    assert batch["ids"].tolist() == [0, 2, 2, 3]
    assert [bad[0] for bad in batch["bad"]] == [1]
