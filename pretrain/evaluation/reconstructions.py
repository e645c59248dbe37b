"""Images of what a model predicts: original, visible units, and two ways to show the prediction.

With normalised targets a model says nothing about a unit's mean and contrast. An image that takes them from the
original flatters the model: here that column is named so, and beside it stands the prediction alone. Only targets that
are pixels can be drawn.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from data.loading.order import evaluation_micro_batch
from data.shards.shard_set import ShardSet
from pretrain.batches.micro_batch import PretrainBuilder
from pretrain.model.greenmim import GreenMIM
from pretrain.targets.pixels import EPS, pixels_to_images, unit_pixels

NUM_IMAGES = 6
ALONE_DEVIATION = 0.5
"""Contrast given to a prediction shown alone, in standard deviations of the data set's pixels."""
COLUMNS = {
    "original": "original",
    "visible": "visible to the encoder",
    "filled": "masked units: prediction,\nmean and contrast from the original",
    "alone": "masked units: prediction alone\n(as predicted, one scale for all)",
}


def draw_reconstructions(model: GreenMIM, *, builder: PretrainBuilder, shards: ShardSet, folder: Path) -> Path:
    """Write ``reconstructions.png`` of the first images of ``shards``; return its path."""
    num_images = min(NUM_IMAGES, shards.num_samples)
    # Mask 0 of the run on its first images: the same drawing after each run of a recipe.
    places = evaluation_micro_batch(shards.sizes, micro_batch_size=num_images, number=0)
    samples = [shards.read(shard, position) for shard, position, *_ in places.tolist()]
    batch = builder(samples, step=0, micro_batch=0)
    columns = reconstructions(model.eval().float(), batch)
    mpl.use("Agg")
    figure = Figure(figsize=(2.3 * len(COLUMNS), 2.2 * num_images + 0.6), layout="constrained")
    axes = figure.subplots(num_images, len(COLUMNS), squeeze=False)
    for column, (name, title) in enumerate(COLUMNS.items()):
        axes[0][column].set_title(title, fontsize=8)
        for row in range(num_images):
            axes[row][column].imshow(columns[name][row], interpolation="nearest")
            axes[row][column].axis("off")
    path = folder / "reconstructions.png"
    figure.savefig(path, dpi=110)
    return path


@torch.no_grad()
def reconstructions(model: GreenMIM, batch: dict) -> dict[str, np.ndarray]:
    """Compute the columns as uint8 images ``[b, h, w, 3]``."""
    x = model.pixels(batch["images"])
    units = batch["predicted_units"]
    true = unit_pixels(x, model.unit)
    predicted = model.predict(
        x, layout=batch["layout"].to(x.device), feature_units=batch["feature_units"], predicted_units=units
    )
    grid = (x.shape[2] // model.unit[0], x.shape[3] // model.unit[1])
    hidden = true.index_select(1, units)
    filled, alone = predicted, predicted
    if model.normalise_targets:
        filled = predicted * (hidden.var(-1, keepdim=True) + EPS).sqrt() + hidden.mean(-1, keepdim=True)
        alone = predicted * ALONE_DEVIATION
    grey = torch.zeros_like(hidden)

    def image(values: Tensor) -> np.ndarray:
        full = pixels_to_images(true.index_copy(1, units, values), model.unit, grid)
        raw = (full * model.pixels.std + model.pixels.mean).round().clamp(0, 255).byte()
        return raw.permute(0, 2, 3, 1).numpy()

    return {"original": image(hidden), "visible": image(grey), "filled": image(filled), "alone": image(alone)}
