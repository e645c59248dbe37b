"""What a detector says of one image: its objects, and their boxes and masks drawn into it."""

from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from engine.recipe import restore
from finetune.detection.batches import evaluation_transform, on_canvas
from finetune.detection.config import DetectConfig, ResizeConfig
from finetune.detection.evaluate import pairs
from finetune.detection.model import run_detector
from finetune.detection.predictions import as_plain, in_image
from finetune.network.weights import Trained
from finetune.task import Prediction, Predictor, RgbImage

DRAWN_SCORE = 0.3
OPACITY = 0.45
LINE_PX = 2


def object_predictor(trained: Trained) -> Predictor:
    """Make the function from an image to its objects, resized as the run measured."""
    config = restore(DetectConfig, trained.metadata["recipe"])
    names, numbers = trained.class_names, category_ids(trained)

    def predict(image: RgbImage) -> Prediction:
        detections = detect(trained, image, resize=config.resize)
        lines = as_plain(detections, sample=0)
        objects: list[dict[str, Any]] = []
        for row, box in enumerate(lines["boxes"]):
            category = lines["classes"][row]
            line = {"class": names[category], "category_id": numbers[category]}
            line |= {"score": lines["scores"][row], "bbox": box}
            objects.append(line | ({"segmentation": lines["masks"][row]} if "masks" in lines else {}))
        return Prediction(record={"objects": objects}, overlay=draw_objects(image, detections, classes=names))

    return predict


def category_ids(trained: Trained) -> tuple[int, ...]:
    """COCO's category id of each class; 1, 2, ... where none are known."""
    return tuple(trained.metadata["category_ids"] or range(1, trained.num_classes + 1))


@torch.inference_mode()
def detect(trained: Trained, image: RgbImage, *, resize: ResizeConfig) -> dict[str, Tensor]:
    """Find the objects of an image, in its own pixels, best score first."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    resized: Tensor = evaluation_transform(resize)({"image": pixels})["image"]
    canvas, sizes = on_canvas([resized], resize=resize)
    (detections,) = run_detector(trained.network, trained.pixels(canvas), pairs(sizes))
    content, true_size = (resized.shape[1], resized.shape[2]), (image.shape[0], image.shape[1])
    return in_image(detections, content=content, true_size=true_size)


def draw_objects(
    image: RgbImage, detections: dict[str, Tensor], *, classes: tuple[str, ...], score: float = DRAWN_SCORE
) -> Image.Image:
    """Draw the objects of at least this ``score``: masks under boxes under names, a colour a class."""
    rows = torch.where(detections["scores"] >= score)[0].tolist()
    labels = detections["labels"].tolist()
    over = image.astype(np.float64)
    for row in reversed(rows):
        if "masks" in detections:
            mask = detections["masks"][row].numpy()
            over[mask] = (1 - OPACITY) * over[mask] + OPACITY * np.array(_colour(labels[row]))
    canvas = Image.fromarray(over.round().astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for row in reversed(rows):
        left, top, right, bottom = detections["boxes"][row].tolist()
        draw.rectangle((left, top, right, bottom), outline=_colour(labels[row]), width=LINE_PX)
        text = f"{classes[labels[row]]} {float(detections['scores'][row]):.2f}"
        draw.rectangle(draw.textbbox((left + LINE_PX, top + LINE_PX), text), fill=_colour(labels[row]))
        draw.text((left + LINE_PX, top + LINE_PX), text, fill="white")
    return canvas


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue, _ = colormaps["tab10"](number % 10, bytes=True)
    return int(red), int(green), int(blue)
