"""What a classifier says of one image: probabilities of the classes, and the best of them written into it."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from data.images.transforms import resize_center_crop
from finetune.classification.config import ClassifyEvaluationConfig
from finetune.network.weights import Trained
from finetune.task import Prediction, Predictor, RgbImage

SHOWN = 3
LINE_PX, MARGIN_PX = 12, 4


def class_predictor(trained: Trained) -> Predictor:
    """Make the function from an image to its classes' probabilities, cropped as the run measured."""
    network, pixels, ratio = trained.network.eval(), trained.pixels, _crop_ratio(trained.metadata)

    @torch.inference_mode()
    def predict(image: RgbImage) -> Prediction:
        crop = resize_center_crop(_as_png(image), size=trained.img_size, crop_ratio=ratio)
        logits = network(pixels(torch.from_numpy(np.ascontiguousarray(crop))[None]))
        shares = logits[0].double().softmax(0).tolist()
        probabilities = dict(sorted(zip(trained.class_names, shares, strict=True), key=lambda pair: -pair[1]))
        return Prediction(record={"probabilities": probabilities}, overlay=_with_best(image, probabilities))

    return predict


def _crop_ratio(metadata: Mapping[str, Any]) -> float:
    """Read out of a network's recipe how it was measured; networks of others have none."""
    evaluation = metadata.get("recipe", {}).get("evaluation", {})
    return float(evaluation.get("crop_ratio", ClassifyEvaluationConfig.crop_ratio))


def _with_best(image: RgbImage, probabilities: dict[str, float]) -> Image.Image:
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for row, (name, share) in enumerate(list(probabilities.items())[:SHOWN]):
        text, corner = f"{100 * share:.1f} % {name}", (MARGIN_PX, MARGIN_PX + row * LINE_PX)
        draw.rectangle(draw.textbbox(corner, text), fill="black")
        draw.text(corner, text, fill="white")
    return canvas


def _as_png(image: RgbImage) -> bytes:
    """Encode an image without loss, for the evaluation's crop, which takes files."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=0)
    return file.getvalue()
