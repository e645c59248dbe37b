"""What a detector says about one picture: its objects, and their boxes and masks drawn into it.

Legend: n objects of the picture.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from finetune.detection.batches import evaluation_transform, on_canvas
from finetune.detection.model import run_detector
from finetune.detection.predictions import as_found, in_picture
from finetune.detection.trained import TrainedDetector, load_detector
from finetune.prediction import Picture, Prediction, Predictor

DRAWN_SCORE = 0.3
OPACITY = 0.45
LINE_PX = 2


def object_predictor(path: Path, weights: str | None) -> Predictor:
    """Return the predictor of a detection run or checkpoint.

    Raises:
        UserError: it has no such weights.
    """
    trained = load_detector(path, weights)

    def predict(picture: Picture) -> Prediction:
        found = detect(trained, picture)
        lines = as_found(found, sample=0)
        objects: list[dict[str, Any]] = []
        for row, box in enumerate(lines["boxes"]):
            number = lines["classes"][row]
            line = {"class": trained.classes[number], "category_id": trained.category_ids[number]}
            line |= {"score": lines["scores"][row], "bbox": box}
            objects.append(line | ({"segmentation": lines["masks"][row]} if "masks" in lines else {}))
        return Prediction(record={"objects": objects}, overlay=draw_objects(picture, found, classes=trained.classes))

    return predict


@torch.inference_mode()
def detect(trained: TrainedDetector, picture: Picture) -> dict[str, Tensor]:
    """Return the objects of an upright RGB picture [height, width, 3], in its own pixels, best score first."""
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    resized: Tensor = evaluation_transform(trained.config.resize)({"image": image})["image"]
    canvas, sizes = on_canvas([resized], resize=trained.config.resize)
    (found,) = run_detector(trained.network, trained.pixels(canvas), [(int(sizes[0, 0]), int(sizes[0, 1]))])
    content, true_size = (resized.shape[1], resized.shape[2]), (picture.shape[0], picture.shape[1])
    return in_picture(found, content=content, true_size=true_size)


def draw_objects(
    picture: Picture, found: dict[str, Tensor], *, classes: tuple[str, ...], score: float = DRAWN_SCORE
) -> Image.Image:
    """Return the picture with the objects of at least this ``score``: masks under boxes under names, a colour a class."""
    kept = torch.where(found["scores"] >= score)[0].tolist()
    labels = found["labels"].tolist()
    over = picture.astype(np.float64)
    for row in reversed(kept):
        if "masks" in found:
            mask = found["masks"][row].numpy()
            over[mask] = (1 - OPACITY) * over[mask] + OPACITY * np.array(_colour(labels[row]))
    canvas = Image.fromarray(over.round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for row in reversed(kept):
        left, top, right, bottom = found["boxes"][row].tolist()
        draw.rectangle((left, top, right, bottom), outline=_colour(labels[row]), width=LINE_PX)
        words = f"{classes[labels[row]]} {float(found['scores'][row]):.2f}"
        draw.rectangle(draw.textbbox((left + LINE_PX, top + LINE_PX), words), fill=_colour(labels[row]))
        draw.text((left + LINE_PX, top + LINE_PX), words, fill="white")
    return canvas


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue, _ = colormaps["tab10"](number % 10, bytes=True)
    return int(red), int(green), int(blue)
