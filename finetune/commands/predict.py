"""``predict RUN IMAGES --out FOLDER``: what a trained run of any task says of images.

    FOLDER/
    ├── predictions.json     one entry an image, in the order of their names
    ├── predictions.jsonl    the same, a line an image, while it is being written; gone once predictions.json is there
    ├── cat.overlay.png      the answer drawn into cat.jpg
    ├── cat.labels.png       the class of each pixel, of runs that segment
    └── cat.similarities.png each class query's likeness with the places, of runs that segment with SegViT

An image that does not decode is named in ``predictions.json`` with the reason. The folder is absent, empty, or that of
earlier predictions.
"""

import hashlib
import json
import logging
from itertools import chain, count
from pathlib import Path
from typing import Any

from PIL import Image

from data.images.decode import BadImage, decode_rgb
from data.sources.preparation import IMAGE_SUFFIXES, read_limited
from engine.errors import UserError
from engine.run.durable import append, replacing, write_durably
from engine.run.own_folder import check_own_folder
from finetune.commands.options import PredictOptions
from finetune.network.weights import choose_weights, pick_weights
from finetune.task import Predictor, task_of_run

logger = logging.getLogger(__name__)

FILE_NAME, LINES_NAME = "predictions.json", "predictions.jsonl"
DRAWN = (".overlay.png", ".labels.png", ".similarities.png")
LONGEST_NAME_BYTES = 180
"""A file system takes names of 255 bytes; an answer's is longer than its image's, while it is written more so."""


def predict(options: PredictOptions) -> None:
    """Answer all images and write the answers.

    Raises:
        UserError: there is no such run, or no image.
    """
    if not options.run.is_dir():
        raise UserError(f"predict: {options.run} is no folder; give that of a run, or one of its checkpoints")
    images = find_images(options.images)
    check_own_folder(options.out, marks=(FILE_NAME, LINES_NAME), is_own=_is_own, option="--out")
    task, (folder, name) = task_of_run(options.run), choose_weights(options.run, options.weights)
    load = pick_weights(task.find(str(folder)), name, where=folder)
    predictor = task.predictor(load())
    options.out.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    lines = options.out / LINES_NAME
    lines.unlink(missing_ok=True)
    for answered_name, path in images.items():
        records.append(_predict_one(path, name=answered_name, predictor=predictor, out=options.out))
        append(lines, json.dumps(records[-1]) + "\n")  # what ends the command later does not take it back
    write_durably(options.out / FILE_NAME, json.dumps(records, indent=1).encode())
    lines.unlink(missing_ok=True)
    bad = sum("error" in record for record in records)
    logger.info("%d images, %d of them unreadable: %s", len(records), bad, options.out / FILE_NAME)


def find_images(path: Path) -> dict[str, Path]:
    """Find the images of a folder and its subfolders, or one file, by the names that their answers get.

    Raises:
        UserError: there are none.
    """
    if path.is_file():
        return {_short(path.stem): path}
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise UserError(f"predict: no image in {path}; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    names: dict[str, Path] = {}
    for file in files:
        plain = _short("_".join(file.relative_to(path).with_suffix("").parts))
        others = (f"{plain}_{file.suffix[1:]}{number or ''}" for number in count())
        names[next(name for name in chain([plain], others) if name not in names)] = file
    return names


def _predict_one(path: Path, *, name: str, predictor: Predictor, out: Path) -> dict[str, Any]:
    try:
        pixels = decode_rgb(read_limited(path))
    except (BadImage, OSError) as error:
        return {"file": str(path), "error": str(error)}
    answer = predictor(pixels)
    labels = None if answer.label_map is None else Image.fromarray(answer.label_map)
    for ending, drawn in zip(DRAWN, (answer.overlay, labels, answer.similarities), strict=True):
        if drawn is not None:
            with replacing(out / f"{name}{ending}") as beside:
                drawn.save(beside, "PNG")
    return {"file": str(path), "height": pixels.shape[0], "width": pixels.shape[1], **answer.record}


def _short(name: str) -> str:
    """Shorten what is too long for the name of a file, so that it is told from others with the same beginning."""
    whole = name.encode(errors="surrogateescape")
    if len(whole) <= LONGEST_NAME_BYTES:
        return name
    beginning = whole[: LONGEST_NAME_BYTES - 9].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(whole).hexdigest()[:8]}"


def _is_own(name: str) -> bool:
    return name in (FILE_NAME, LINES_NAME) or name.endswith(DRAWN) or (name.startswith(".") and ".png." in name)
