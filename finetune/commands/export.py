"""Writes a trained classifier or segmenter as an ONNX file that takes raw pixels, and checks it against torch.

    images  uint8 [b, 3, h, w]  ->  logits float32 [b, classes]  or  scores float32 [b, classes, h, w]

Needs the extra ``export`` (onnx, onnxscript, onnxruntime). Legend: b images, h w height and width in pixels.
"""

import argparse
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.pixels import Pixels
from engine.terms import Size
from finetune.classification.classifiers import find_classifiers
from finetune.detection.export import SUFFIX, export_detector
from finetune.network.weights import CHOICES, choose_weights, stored_description
from finetune.prediction import pick_weights
from finetune.segmentation.trained import load_trained
from finetune.tasks import task_of_run

logger = logging.getLogger(__name__)

MOST_OFF = 1e-3
"""Largest difference of an output from torch's, of outputs that are at most a few units."""
OTHER_BATCH = 3
OTHER_SIDES_PX = 32
OPSET = 20


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A network from raw pixels to what it says of them."""

    network: nn.Module
    """uint8 [b, 3, h, w] to one float tensor; in evaluation mode."""
    size: Size
    """Height and width that it is exported for, in pixels."""
    output: str
    """Name of the output."""


class FromPixels(nn.Module):
    """Normalisation and a network as one module."""

    def __init__(self, pixels: Pixels, network: Any) -> None:
        super().__init__()
        self.pixels, self.network = pixels, network

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output for raw ``images``."""
        return self.network(self.pixels(images))


class Scores(nn.Module):
    """A segmenter's scores of raw pixels, whole images at once."""

    def __init__(self, segmenter: Any) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """Return each class's score at each pixel of raw ``images``."""
        return self.segmenter.scores(self.segmenter.pixels(images))


def export_command(words: Sequence[str]) -> None:
    """``export RUN FILE``: write the newest weights of a run as ONNX, checked with onnxruntime; boxes as FILE.pt2 (torch.export)."""
    parser = argparse.ArgumentParser(prog="finetune/main.py export", description=export_command.__doc__)
    parser.add_argument("run", type=Path, help="run folder, one of its checkpoints, or best weights")
    parser.add_argument("file", type=Path, help="where to, such as model.onnx, or model.pt2 of a detector")
    parser.add_argument("--size", type=int, nargs=2, help="height and width in pixels; default: the run's")
    parser.add_argument("--dynamic-batch", action="store_true", help="take any number of images")
    parser.add_argument("--dynamic-size", action="store_true", help="take any size, where the network allows it")
    parser.add_argument(
        "--weights", choices=CHOICES, help="raw (default) or ema of the newest checkpoint, or the best measured"
    )
    options = parser.parse_args(list(words))
    size = tuple(options.size) if options.size else None
    if options.file.suffix == SUFFIX:
        if options.dynamic_batch or options.dynamic_size:
            raise UserError(
                "export: a detector is written for one image of one size; leave --dynamic-batch and --dynamic-size out"
            )
        off = export_detector(options.run, options.file, size=size, weights=options.weights)
        logger.info("%s: boxes before suppression, at most %.1e from the detector's", options.file, off)
        return
    found = exportable(options.run, size=size, weights=options.weights)
    off = export(found, options.file, dynamic_batch=options.dynamic_batch, dynamic_size=options.dynamic_size)
    logger.info("%s: %d bytes, at most %.1e from torch", options.file, options.file.stat().st_size, off)


def exportable(run: Path, *, size: Size | None = None, weights: str | None = None) -> Exportable:
    """Return the network of a run, a checkpoint or best weights.

    Raises:
        UserError: there is no such run, it has no such weights, or is of a task that has no ONNX form.
    """
    if not (run / "config.yaml").is_file() and stored_description(run) is None:
        raise UserError(f"export takes a run folder with a config.yaml, a checkpoint or best weights, got {run}")
    task = task_of_run(run)
    if task == "segment":
        trained = load_trained(*choose_weights(run, weights))
        return Exportable(
            network=Scores(trained.segmenter).eval(), size=size or trained.config.augment.crop, output="scores"
        )
    if task == "detect":
        raise UserError(f"{run} is a run of detection, which has no ONNX form here: write FILE{SUFFIX} instead")
    folder, name = choose_weights(run, weights)
    found = {classifier.name: classifier for classifier in find_classifiers(str(folder), img_size=size)}
    classifier = pick_weights(found, asked=name, where=run)
    if size not in (None, classifier.img_size):
        height, width = classifier.img_size
        raise UserError(
            f"export: the classifiers of a run take {height}x{width} pixels; fine-tune at another --backbone.img-size"
        )
    network = FromPixels(Pixels(classifier.mean, classifier.std), classifier.network).eval()
    return Exportable(network=network, size=classifier.img_size, output="logits")


def export(found: Exportable, file: Path, *, dynamic_batch: bool = False, dynamic_size: bool = False) -> float:
    """Write ``found`` as ONNX and return the largest difference from torch that onnxruntime shows.

    Raises:
        UserError: the extra is missing, the network's code depends on the size, or onnxruntime differs from torch.
    """
    images = _images(2 if dynamic_batch else 1, found.size)
    dynamic = _dynamic(batch=dynamic_batch, size=dynamic_size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own, about its future
            torch.onnx.export(
                found.network,
                (images,),
                str(file),
                input_names=["images"],
                output_names=[found.output],
                dynamic_shapes=(dynamic,) if dynamic else None,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise UserError(f"export needs the extra of that name ({error}): pip install -e '.[export]'") from None
    except Exception as error:  # the exporter raises what it likes
        what = "any size" if dynamic_size else "any number of images" if dynamic_batch else f"{found.size} pixels"
        advice = "its code depends on the size: leave --dynamic-size out" if dynamic_size else _first_line(error)
        raise UserError(f"the network cannot be exported for {what}: {advice}") from error
    return _check(found, file, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)


def _check(found: Exportable, file: Path, *, dynamic_batch: bool, dynamic_size: bool) -> float:
    """Return the largest difference between onnxruntime and torch, over the shapes that the file is to take."""
    import onnxruntime  # noqa: PLC0415  (part of an extra)

    session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    larger = (found.size[0] + OTHER_SIDES_PX, found.size[1] + 2 * OTHER_SIDES_PX)
    sizes = [found.size, larger] if dynamic_size else [found.size]
    off = 0.0
    for size in sizes:
        for batch in (1, OTHER_BATCH) if dynamic_batch else (1,):
            images = _images(batch, size)
            with torch.inference_mode():
                expected = found.network(images)
            answer = _answer(session, images)
            off = max(off, float((torch.from_numpy(answer) - expected).abs().max()))
    if off > MOST_OFF:
        file.unlink()
        raise UserError(f"{file} differs by {off:.1e} from torch under onnxruntime, at most {MOST_OFF:.0e} is expected")
    return off


def _answer(session: Any, images: Tensor) -> Any:
    try:
        (answer,) = session.run(None, {"images": images.numpy()})
    except Exception as error:  # onnxruntime's own kinds
        raise UserError(
            f"the file does not take images {tuple(images.shape)}: the network's code depends on what --dynamic-batch and "
            f"--dynamic-size leave open; leave them out ({_first_line(error)})"
        ) from error
    return answer


def _dynamic(*, batch: bool, size: bool) -> dict[int, Any]:
    dims: dict[int, Any] = {0: torch.export.Dim("batch")} if batch else {}
    return dims | ({2: torch.export.Dim("height"), 3: torch.export.Dim("width")} if size else {})


def _images(number: int, size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, *size), generator=generator, dtype=torch.uint8)


def _first_line(error: Exception) -> str:
    """Return the first line of the exporter's message, without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
