"""Every recipe fits the config, and nonsense is refused with what to do."""

from pathlib import Path

import pytest
from timm.data.auto_augment import rand_augment_transform

from data.config import DataConfig
from engine.recipe import parse
from finetune.classification.config import AugmentConfig, ClassifyConfig, ClassifyEvaluationConfig, TaskConfig
from finetune.config import StartConfig, steps_between_evaluations
from finetune.tasks import TASKS, choose_task

RECIPES = sorted((Path(__file__).parents[3] / "finetune" / "recipes").rglob("*.yaml"))
REQUIRED = ["--data.shards", "train", "--val-shards", "val"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_its_header_names_process_counts(path):
    task, argv = choose_task(["--recipe", str(path), *REQUIRED])
    config = parse(TASKS[task].config, argv)
    header = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    if isinstance(config, ClassifyConfig) and config.task.method == "knn":
        return
    num_micro_batches = config.data.batch_size // config.data.micro_batch_size
    counts = [str(w) for w in range(1, num_micro_batches + 1) if num_micro_batches % w == 0]
    assert f"{', '.join(counts[:-1])} or {counts[-1]}" in header


def test_the_defaults_are_the_published_recipe():
    config = parse(ClassifyConfig, REQUIRED)
    published = parse(ClassifyConfig, ["--recipe", str(RECIPES[0].parent / "imagenet.yaml"), *REQUIRED])
    assert config.augment == published.augment
    assert config.optimizer == published.optimizer
    # methods: 1.25e-3 per 512 images, at 768
    assert published.optimizer.base_lr * published.data.batch_size / published.optimizer.lr_batch_size == 1.875e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskConfig(label_fraction=0.0), "task.label-fraction"),
        (lambda: TaskConfig(label_fraction=0.1, labels_per_class=3), "exclude each other"),
        (lambda: TaskConfig(num_classes=1), "at least 2"),
        (lambda: TaskConfig(freeze=-1), "task.freeze"),
        (lambda: StartConfig(drop_path=1.0), "backbone.drop-path"),
        (lambda: AugmentConfig(scale=(0.0, 1.0)), "augment.scale"),
        (lambda: AugmentConfig(erase_prob=2.0), "augment.erase-prob"),
        (lambda: AugmentConfig(rand_augment="m9"), "rand-m9-mstd0.5-inc1"),
        (lambda: ClassifyEvaluationConfig(crop_ratio=1.5), "evaluation.crop-ratio"),
        (
            lambda: ClassifyConfig(data=DataConfig(shards=("x",), batch_size=6, micro_batch_size=3), val_shards="y"),
            "must be even",
        ),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_evaluations_come_every_so_many_passes():
    assert steps_between_evaluations(ClassifyEvaluationConfig(every_epochs=0.5), steps_per_epoch=100) == 50
    assert steps_between_evaluations(ClassifyEvaluationConfig(every_epochs=0.001), steps_per_epoch=100) == 1
    assert steps_between_evaluations(ClassifyEvaluationConfig(every_steps=7), steps_per_epoch=100) == 7


@pytest.mark.parametrize("policy", ["rand-m9-qq5", "rand-mm", "rand-", "rand-m9-n-1", "m9", "rand-mnan", "rand-m9-w0"])
def test_policies_that_timm_cannot_read_are_refused_before_a_worker_meets_them(policy):
    with pytest.raises(ValueError, match=r"augment\.rand-augment takes"):
        AugmentConfig(rand_augment=policy)


@pytest.mark.parametrize("policy", ["rand", "rand-m9-mstd0.5-inc1", "rand-m7-n3-mmax12-p0.5", "rand-mstd1-tweights"])
def test_policies_that_timm_reads_are_taken(policy):
    assert rand_augment_transform(AugmentConfig(rand_augment=policy).rand_augment, {}).num_layers
