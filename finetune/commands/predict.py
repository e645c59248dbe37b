"""``predict RUN IMAGES --out FOLDER``: what a trained run of any task says about pictures.

    FOLDER/
    ├── predictions.json     one entry a picture, in the order of their names
    ├── cat.overlay.png      the answer drawn into cat.jpg
    ├── cat.labels.png       the class of each pixel, of runs that segment
    └── cat.similarities.png each class query's likeness with the places, of runs that segment with SegViT

A picture that does not decode is named in ``predictions.json`` with the reason.
"""

import argparse
import json
import logging
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any

from PIL import Image

from data.images.decode import BadImage, decode_rgb
from data.sources.preparation import IMAGE_SUFFIXES, read_limited
from engine.errors import UserError
from engine.run.durable import write_durably
from finetune.network.weights import CHOICES, choose_weights
from finetune.prediction import MakePredictor, Predictor

logger = logging.getLogger(__name__)

FILE_NAME = "predictions.json"


def predict(words: list[str], *, predictor_of: Callable[[Path], MakePredictor]) -> None:
    """Run the command; ``predictor_of`` says how the run in a folder predicts.

    Raises:
        UserError: there is no such run, or no picture.
    """
    options = _options(words)
    if not options.run.is_dir():
        raise UserError(f"predict: {options.run} is no folder; give that of a run, or one of its checkpoints")
    pictures = find_pictures(options.images)
    predictor = predictor_of(options.run)(*choose_weights(options.run, options.weights))
    options.out.mkdir(parents=True, exist_ok=True)
    records = [_predict_one(path, name=name, predictor=predictor, out=options.out) for name, path in pictures.items()]
    write_durably(options.out / FILE_NAME, json.dumps(records, indent=1).encode())
    bad = sum("error" in record for record in records)
    logger.info("%d pictures, %d of them unreadable: %s", len(records), bad, options.out / FILE_NAME)


def find_pictures(path: Path) -> dict[str, Path]:
    """Return the pictures of a folder and its subfolders, or one file, by the names that their answers get.

    Raises:
        UserError: there are none.
    """
    if path.is_file():
        return {path.stem: path}
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise UserError(f"predict: no picture in {path}; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    names: dict[str, Path] = {}
    for one in found:
        plain = "_".join(one.relative_to(path).with_suffix("").parts)
        others = (f"{plain}_{one.suffix[1:]}{number or ''}" for number in count())
        names[next(name for name in chain([plain], others) if name not in names)] = one
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


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="finetune/main.py predict", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, one of its checkpoints, or best weights")
    parser.add_argument("images", type=Path, help="a picture, or a folder of pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument(
        "--weights", choices=CHOICES, help="raw (default) or ema of the newest checkpoint, or the best measured"
    )
    return parser.parse_args(words)
