"""The segmentation program under the real launcher: two processes learn and measure what one does."""

import io

import numpy as np
import pytest
from PIL import Image

from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.recipe import parse
from finetune.segmentation.config import SegmentConfig
from finetune.train import train
from tests.integration.launched import difference, launch_well, results_of, samples_of

FP32_BOUND = 2e-6  # measured: 2.3e-10 after three steps, for another order of fp32 sums
RECIPE = """
backbone: {name: swin_tiny_patch4_window7_224, img_size: [32, 32], window: 2, embed_dim: 16,
           depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8], drop_path: 0.1}
segmenter: {head: segvit, dim: 16, num_heads: 2, strides: [4, 8]}
labels: {void: [9]}
data: {batch_size: 4, micro_batch_size: 2, workers: 0}
augment: {crop: [32, 32], short_side: 40}
inference: {short_side: 40}
evaluation: {every_steps: 3, micro_batch_size: 2}
optimizer: {base_lr: 1.0e-3, lr_batch_size: 4, head_lr_scale: 2.0, steps: 3, warmup_steps: 1, ema_decay: 0.5}
run: {save_every_steps: 3}
report: {every_steps: 1, tensorboard: false, samples: true}
distributed: {precision: fp32}
"""


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def scene(number, *, height):
    """Bands of noisy greys with a void column, and their classes."""
    rng = np.random.default_rng(number)
    labels = np.repeat(np.sort(rng.integers(0, 3, height)).astype(np.uint8)[:, None], 56, axis=1)
    image = np.repeat((60 + 70 * labels + rng.integers(0, 20, labels.shape, dtype=np.uint8))[..., None], 3, axis=2)
    labels[:, number % 4] = 9
    return {"png": png(image), "seg.png": png(labels)}


@pytest.fixture
def words(tmp_path):
    """The options that every run shares: shards of bands and a micro recipe."""
    for name, first, count in (("train", 0, 12), ("val", 40, 7)):
        samples = [
            NewSample(source=f"scene {number}", members=scene(number, height=40 + 8 * (number % 2)))
            for number in range(first, first + count)
        ]
        write_shards(samples, out=tmp_path / name, classes=list("abc"), limits=ShardLimits(samples=5))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    folders = ("--data.shards", str(tmp_path / "train"), "--val-shards", str(tmp_path / "val"))
    return ["--recipe", str(tmp_path / "recipe.yaml"), *folders]


@pytest.mark.timeout(240)
def test_two_processes_under_zero1_learn_and_measure_what_one_does(words, tmp_path):
    """The task follows from the recipe's section; every image is measured once, whoever measures it."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(parse(SegmentConfig, [*words, "--run.folder", str(alone)]))
    launch_well("finetune", *words, "--run.folder", str(together))
    assert samples_of(alone) == samples_of(together)
    assert len(samples_of(alone)) == 6
    assert difference(alone, together) < FP32_BOUND
    results = [results_of(folder) for folder in (alone, together)]
    assert [line["name"] for line in results[1]] == ["last raw", "last ema", "best raw", "best ema"]
    for ours, theirs in zip(*results, strict=True):
        assert ours["num_images"] == theirs["num_images"] == 7
        assert np.sum(ours["confusion"]) == np.sum(theirs["confusion"])
        assert ours["miou"] == pytest.approx(theirs["miou"], abs=2e-3)  # pixels on the fence may fall either way
