"""What a classifier says about one picture: probabilities of the classes, and the best of them written into it."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from data.images.transforms import resize_center_crop
from engine.pixels import Pixels
from finetune.classification.classifiers import find_classifiers
from finetune.prediction import Picture, Prediction, Predictor, pick_weights

SHOWN = 3
LINE_PX, MARGIN_PX = 12, 4


def class_predictor(path: Path, weights: str | None) -> Predictor:
    """Return the predictor of a classification run or checkpoint.

    Raises:
        UserError: it has no such weights.
    """
    found = {classifier.name: classifier for classifier in find_classifiers(str(path))}
    classifier = pick_weights(found, asked=weights, where=path)
    network, pixels = classifier.network.eval(), Pixels(classifier.mean, classifier.std)
    classes = classifier.classes or tuple(map(str, range(classifier.num_classes)))

    @torch.inference_mode()
    def predict(picture: Picture) -> Prediction:
        crop = resize_center_crop(_as_png(picture), size=classifier.img_size, crop_ratio=classifier.crop_ratio)
        logits = network(pixels(torch.from_numpy(np.ascontiguousarray(crop))[None]))
        shares = logits[0].double().softmax(0).tolist()
        probabilities = dict(sorted(zip(classes, shares, strict=True), key=lambda pair: -pair[1]))
        return Prediction(record={"probabilities": probabilities}, overlay=_with_best(picture, probabilities))

    return predict


def _with_best(picture: Picture, probabilities: dict[str, float]) -> Image.Image:
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for row, (name, share) in enumerate(list(probabilities.items())[:SHOWN]):
        words, where = f"{100 * share:.1f} % {name}", (MARGIN_PX, MARGIN_PX + row * LINE_PX)
        draw.rectangle(draw.textbbox(where, words), fill="black")
        draw.text(where, words, fill="white")
    return canvas


def _as_png(picture: Picture) -> bytes:
    """Return the picture encoded without loss, which is what the evaluation's crop takes."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=0)
    return file.getvalue()
