"""``predict RUN IMAGES --out FOLDER``: what a trained run of any task says of images.

    FOLDER/
    ├── predictions.json     one entry an image, in the order of their names
    ├── cat.overlay.png      the answer drawn into cat.jpg
    ├── cat.labels.png       the class of each pixel, of runs that segment
    └── cat.similarities.png each class query's likeness with the places, of runs that segment with SegViT

An image that does not decode is named in ``predictions.json`` with the reason.
"""

import json
import logging
from itertools import chain, count
from pathlib import Path
from typing import Any

from PIL import Image

from data.images.decode import BadImage, decode_rgb
from data.sources.preparation import IMAGE_SUFFIXES, read_limited
from engine.errors import UserError
from engine.run.durable import write_durably
from finetune.commands.options import PredictOptions
from finetune.network.weights import choose_weights, pick_weights
from finetune.task import Predictor, task_of_run

logger = logging.getLogger(__name__)

FILE_NAME = "predictions.json"


def predict(options: PredictOptions) -> None:
    """Answer all images and write the answers.

    Raises:
        UserError: there is no such run, or no image.
    """
    if not options.run.is_dir():
        raise UserError(f"predict: {options.run} is no folder; give that of a run, or one of its checkpoints")
    images = find_images(options.images)
    task, (folder, name) = task_of_run(options.run), choose_weights(options.run, options.weights)
    load = pick_weights(task.find(str(folder)), name, where=folder)
    predictor = task.predictor(load())
    options.out.mkdir(parents=True, exist_ok=True)
    records = [_predict_one(path, name=name, predictor=predictor, out=options.out) for name, path in images.items()]
    write_durably(options.out / FILE_NAME, json.dumps(records, indent=1).encode())
    bad = sum("error" in record for record in records)
    logger.info("%d images, %d of them unreadable: %s", len(records), bad, options.out / FILE_NAME)


def find_images(path: Path) -> dict[str, Path]:
    """Find the images of a folder and its subfolders, or one file, by the names that their answers get.

    Raises:
        UserError: there are none.
    """
    if path.is_file():
        return {path.stem: path}
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(f"predict: no image in {path}; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    names: dict[str, Path] = {}
    for file in files:
        plain = "_".join(file.relative_to(path).with_suffix("").parts)
        others = (f"{plain}_{file.suffix[1:]}{number or ''}" for number in count())
        names[next(name for name in chain([plain], others) if name not in names)] = file
    return names


def _predict_one(path: Path, *, name: str, predictor: Predictor, out: Path) -> dict[str, Any]:
    try:
        pixels = decode_rgb(read_limited(path))
    except (BadImage, OSError) as error:
        return {"file": str(path), "error": str(error)}
    answer = predictor(pixels)
    answer.overlay.save(out / f"{name}.overlay.png")
    if answer.label_map is not None:
        Image.fromarray(answer.label_map).save(out / f"{name}.labels.png")
    if answer.similarities is not None:
        answer.similarities.save(out / f"{name}.similarities.png")
    return {"file": str(path), "height": pixels.shape[0], "width": pixels.shape[1], **answer.record}
