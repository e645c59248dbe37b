"""Each image is classified once, and the scores are the same on one process and on three."""

import threading

import pytest
import torch

from data.loading.evaluation import EvaluationBuilder
from data.loading.loader import evaluation_batches
from data.shards.shard_set import open_shards
from finetune.classification.evaluate import evaluate
from finetune.classification.metrics import score


class OneOf:
    """Stands for one process of several, each a thread of this one."""

    device = torch.device("cpu")

    def __init__(self, rank, world_size, shared, barrier):
        self.rank, self.world_size, self._shared, self._barrier = rank, world_size, shared, barrier

    def gather(self, x):
        self._shared[self.rank] = x
        self._barrier.wait(10)
        gathered = torch.cat([self._shared[rank] for rank in range(self.world_size)])
        self._barrier.wait(10)
        return gathered


def guess(images):
    """Return logits that differ from image to image and do not depend on its neighbours."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
    return pooled @ torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def scores_on(world_size, folder):
    shards = open_shards(folder)
    shared, barrier, results = {}, threading.Barrier(world_size), {}

    def run(rank):
        batches = evaluation_batches(
            open_shards(folder),
            EvaluationBuilder(size=(32, 32)),
            micro_batch_size=5,
            rank=rank,
            world_size=world_size,
        )
        engine = OneOf(rank, world_size, shared, barrier)
        results[rank] = evaluate(guess, batches, num_classes=4, num_samples=shards.num_samples, engine=engine)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("world_size", [3, 7])
def test_scores_do_not_depend_on_the_number_of_processes(val_shards, world_size):
    alone, together = scores_on(1, val_shards), scores_on(world_size, val_shards)
    assert len(together) == world_size
    assert all(result == alone[0] for result in together.values())
    assert alone[0].num_images == 23
    assert sum(map(sum, alone[0].confusion)) == 23


def test_an_image_that_is_lost_or_comes_twice_is_noticed(val_shards):
    batches = list(evaluation_batches(open_shards(val_shards), EvaluationBuilder(size=(32, 32)), micro_batch_size=5))
    engine = OneOf(0, 1, {}, threading.Barrier(1))
    for wrong in (batches[:-1], [*batches[:-2], batches[0], batches[-1]]):
        with pytest.raises(AssertionError, match="23 expected"):
            evaluate(guess, wrong, num_classes=4, num_samples=23, engine=engine)


def test_unreadable_images_are_counted(write, tmp_path):
    folder = write(tmp_path / "broken", first=0, count=6, broken=(2, 4))
    scores = scores_on(1, folder)[0]
    assert (scores.num_images, scores.num_unreadable) == (6, 2)


def test_scores_equal_torchmetrics():
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
    )

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 8, generator=generator)
    labels = torch.randint(7, (200,), generator=generator)  # class 7 never occurs
    in_top_k = (logits.topk(5).indices == labels[:, None]).any(1)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    scores = score(labels=labels, guesses=logits.argmax(1), in_top_k=in_top_k, losses=losses, num_classes=8)
    confusion = multiclass_confusion_matrix(logits, labels, num_classes=8)
    assert scores.confusion == tuple(map(tuple, confusion.tolist()))
    for k, ours in ((1, scores.top1), (5, scores.top5)):
        assert ours == pytest.approx(float(multiclass_accuracy(logits, labels, 8, average="micro", top_k=k)))
    per_class = multiclass_accuracy(logits, labels, num_classes=8, average="none")
    assert scores.per_class[:7] == pytest.approx(per_class[:7].tolist())
    assert scores.per_class[7] is None
