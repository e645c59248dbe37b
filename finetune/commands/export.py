"""``export RUN FILE``: writes a trained network that takes raw pixels, and checks the file against torch.

    images  uint8 [b, 3, h, w]  ->  logits float32 [b, classes]                          ONNX
                                ->  scores float32 [b, classes, h, w]                    ONNX
                                ->  boxes float32 [b, a, 4], scores float32 [b, a, k]    torch.export (.pt2)

ONNX needs the extra ``export`` (onnx, onnxscript, onnxruntime), and carries the names of the classes, in their order,
as a JSON list in its property ``names``.

Legend: b images, h w height and width in pixels, a anchors, k classes.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.run.durable import replacing, write_durably
from engine.terms import Size
from finetune.commands.options import ExportOptions
from finetune.network.weights import choose_weights, pick_weights, stored_metadata
from finetune.task import RECIPE_NAME, Exportable, task_of_run

logger = logging.getLogger(__name__)

PT2 = ".pt2"
MOST_OFF = 1e-3
"""Largest difference of an output from torch's, of outputs that are at most a few units."""
OTHER_BATCH = 3
OTHER_SIDES_PX = 32
OPSET = 20
NAMES = "names"
"""Property of an ONNX file that names its classes."""


def export(options: ExportOptions) -> None:
    """Write the weights of a run, and say how far the file's answers are from torch's.

    Raises:
        UserError: there is no such run or weights, the network has no such form, or the file answers otherwise.
    """
    file = options.file
    if file.is_dir() or not file.parent.is_dir():
        raise UserError(f"export takes a file in a folder that exists, got {file}")
    if file.suffix == PT2 and (options.dynamic_batch or options.dynamic_size):
        raise UserError(
            "export: a detector is written for one image of one size; leave --dynamic-batch and --dynamic-size out"
        )
    exportable = load_exportable(options.run, size=options.size, weights=options.weights)
    if (file.suffix == PT2) != (exportable.format == "pt2"):
        needed = f"FILE{PT2}" if exportable.format == "pt2" else "FILE.onnx"
        raise UserError(f"export: {options.run} cannot be written as {file.name}: write {needed} instead")
    if exportable.format == "pt2":
        difference = write_pt2(exportable, file)
        logger.info("%s: boxes before suppression, at most %.1e from the detector's", file, difference)
    else:
        dynamic = {"dynamic_batch": options.dynamic_batch, "dynamic_size": options.dynamic_size}
        difference = write_onnx(exportable, file, **dynamic)
        logger.info("%s: %d bytes, at most %.1e from torch", file, file.stat().st_size, difference)


def load_exportable(run: Path, *, size: Size | None = None, weights: str | None = None) -> Exportable:
    """Load the network of a run, a checkpoint or best weights.

    Raises:
        UserError: there is no such run, it has no such weights, or its network has no form to be written in.
    """
    if not (run / RECIPE_NAME).is_file() and stored_metadata(run) is None:
        raise UserError(f"export takes a run folder with a config.yaml, a checkpoint or best weights, got {run}")
    task, (folder, name) = task_of_run(run), choose_weights(run, weights)
    load = pick_weights(task.find(str(folder), img_size=size), name, where=folder)
    return task.exportable(load(), size=size)


def write_pt2(exportable: Exportable, file: Path) -> float:
    """Write torch.export's file for one image; return the largest difference that the written file shows.

    Raises:
        UserError: it differs from the network.
    """
    images = _images(1, exportable.size)
    content = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(exportable.network, (images,), strict=False), content)
        content.seek(0)
        difference = _largest_difference(torch.export.load(content).module()(images), exportable.network(images))
    _check(difference, file, reader="torch.export")
    write_durably(file, content.getvalue())
    return difference


def write_onnx(exportable: Exportable, file: Path, *, dynamic_batch: bool = False, dynamic_size: bool = False) -> float:
    """Write ONNX; return the largest difference from torch that onnxruntime shows.

    Raises:
        UserError: the extra is missing, the network's code depends on the size, or onnxruntime differs from torch.
    """
    with replacing(file) as beside:
        _write_onnx(exportable, beside, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
        difference = _difference(exportable, beside, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
        _check(difference, file, reader="onnxruntime")
    return difference


def _write_onnx(exportable: Exportable, file: Path, *, dynamic_batch: bool, dynamic_size: bool) -> None:
    images = _images(2 if dynamic_batch else 1, exportable.size)
    dynamic = _dynamic(batch=dynamic_batch, size=dynamic_size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own, about its future
            torch.onnx.export(
                exportable.network,
                (images,),
                str(file),
                input_names=["images"],
                output_names=list(exportable.outputs),
                dynamic_shapes=(dynamic,) if dynamic else None,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise UserError(f"export needs the extra of that name ({error}): pip install -e '.[export]'") from None
    except OSError:
        raise
    except Exception as error:  # the exporter raises what it likes
        what = "any size" if dynamic_size else "any number of images" if dynamic_batch else f"{exportable.size} pixels"
        advice = "its code depends on the size: leave --dynamic-size out" if dynamic_size else _first_line(error)
        raise UserError(f"the network cannot be exported for {what}: {advice}") from error
    if exportable.classes is not None:
        _write_names(file, exportable.classes)


def _write_names(file: Path, classes: Sequence[str]) -> None:
    """Add the names of the classes to a file's properties."""
    import onnx  # noqa: PLC0415  (part of an extra)

    model = onnx.load(file)
    model.metadata_props.add(key=NAMES, value=json.dumps(list(classes)))
    onnx.save(model, file)


def _difference(exportable: Exportable, file: Path, *, dynamic_batch: bool, dynamic_size: bool) -> float:
    """Compare onnxruntime with torch over the shapes that the file is to take."""
    import onnxruntime  # noqa: PLC0415  (part of an extra)

    session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    larger = (exportable.size[0] + OTHER_SIDES_PX, exportable.size[1] + 2 * OTHER_SIDES_PX)
    difference = 0.0
    for size in [exportable.size, larger] if dynamic_size else [exportable.size]:
        for batch in (1, OTHER_BATCH) if dynamic_batch else (1,):
            images = _images(batch, size)
            with torch.inference_mode():
                expected = exportable.network(images)
            difference = max(difference, _largest_difference(_answer(session, images), expected))
    return difference


def _answer(session: Any, images: Tensor) -> list[Tensor]:
    try:
        outputs = session.run(None, {"images": images.numpy()})
    except Exception as error:  # onnxruntime's own kinds
        raise UserError(
            f"the file does not take images {tuple(images.shape)}: the network's code depends on what --dynamic-batch "
            f"and --dynamic-size leave open; leave them out ({_first_line(error)})"
        ) from error
    return [torch.from_numpy(output) for output in outputs]


def _largest_difference(outputs: Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    both = zip(outputs, [expected] if isinstance(expected, Tensor) else expected, strict=True)
    return max(float((output - other).abs().max()) for output, other in both)


def _check(difference: float, file: Path, *, reader: str) -> None:
    """Refuse a file whose answers are others than the network's, before it takes the place of an older one."""
    if not difference <= MOST_OFF:
        raise UserError(
            f"{file} would differ by {difference:.1e} from torch under {reader}, at most {MOST_OFF:.0e} is expected; "
            "it was not written"
        )


def _dynamic(*, batch: bool, size: bool) -> dict[int, Any]:
    dims: dict[int, Any] = {0: torch.export.Dim("batch")} if batch else {}
    return dims | ({2: torch.export.Dim("height"), 3: torch.export.Dim("width")} if size else {})


def _images(number: int, size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, *size), generator=generator, dtype=torch.uint8)


def _first_line(error: Exception) -> str:
    """The first line of the exporter's message, without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
