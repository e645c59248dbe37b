"""The backbone/ folder: how trained weights leave this project, as a model folder that timm reads by itself.

    backbone/
      config.json         timm's name of the architecture, its arguments, mean, std and input size; and `provenance`,
                          which says how the weights were made and which timm ignores
      model.safetensors   fp32 weights and persistent buffers under timm's names

``timm.create_model("local-dir:runs/x/backbone", pretrained=True)`` loads it in a process that has never seen this
project, also with ``num_classes=10``, ``features_only=True`` or another ``img_size``. Without ``pretrained=True`` timm
returns random weights and says nothing.
"""

import itertools
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from backbones.ops.exact_windows import uneven_windows, use_exact_windows
from backbones.weights.resizing import fit_state
from backbones.weights.stored import check_model_args, check_size, check_statistics
from engine.checkpoint.tensor_files import read_tensors, write_tensors
from engine.documents import DocumentError, member, parse_object
from engine.errors import UserError, at_path, is_refusal
from engine.run.durable import fsync_folder
from engine.terms import Size

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TIMM = "timm"
"""In a provenance's `windows`: trained with timm's own padded ones."""


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What config.json says."""

    architecture: str
    """timm's name."""
    model_args: dict[str, Any]
    """Arguments with which timm makes it in this size."""
    num_classes: int
    """Classes of the head; 0 is none."""
    img_size: Size
    """Height and width in pixels of the images that the weights were made with."""
    mean: tuple[float, ...]
    """Channel means to normalise with, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations to normalise with, of pixels in [0, 1]."""
    interpolation: str
    """How images were resized."""
    provenance: dict[str, Any]
    """How the weights were made."""


def write_backbone(
    folder: Path,
    *,
    architecture: str,
    model_args: Mapping[str, Any],
    state: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    provenance: Mapping[str, Any],
    interpolation: str = "bicubic",
    num_classes: int = 0,
    img_size: Size | None = None,
    crop_pct: float | None = None,
    label_names: Sequence[str] | None = None,
) -> None:
    """Write a backbone folder beside ``folder`` and rename it there, in the place of an older one.

    ``state`` may hold more than the model keeps: buffers that timm computes itself and, with ``num_classes=0``, a
    classifier are left out. ``img_size`` is what the weights were trained at, for architectures that take no such
    argument; ``crop_pct`` the share of a resized image's side that is looked at, the architecture's own if not given;
    ``label_names`` name the classes.

    Raises:
        UserError: ``state`` does not fit the architecture in this size.
    """
    model = skeleton(architecture, num_classes=num_classes, **model_args)
    weights = _checked(state, model, where=str(folder))
    size = img_size or input_size(model, model_args)
    config = _config(model, model_args=model_args, img_size=size, mean=mean, std=std, interpolation=interpolation)
    folder = folder.resolve()  # where it is a link, what it leads to is replaced
    windows = None if provenance.get("windows") == TIMM else uneven_windows(model, size)
    provenance = {**provenance, **({"windows": windows} if windows else {})}
    config |= {"architecture": architecture, "num_classes": num_classes, "provenance": provenance}
    if crop_pct is not None:
        config["pretrained_cfg"]["crop_pct"] = crop_pct
    if label_names is not None:
        config["label_names"] = list(label_names)
    # written beside and then renamed, so that what has the folder's name is always whole
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    with at_path(folder):
        try:
            beside.mkdir(parents=True)
            write_tensors(beside / WEIGHTS, weights, metadata={"format": "pt"})
            (beside / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            _replace_folder(folder, beside)
            if windows:
                logger.warning("%s: %s", folder, windows)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def check_replaceable(folder: Path) -> None:
    """Refuse to write a backbone over what is none.

    Raises:
        UserError: there is a file, or a folder with other files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder")
    others = _others_in(folder)
    if others:
        raise UserError(f"{folder} holds {', '.join(others[:3])}, which would be lost; choose another folder")


def _others_in(folder: Path) -> list[str]:
    """List what lies in a folder beside a backbone; all of it where no backbone lies there."""
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if name not in (CONFIG, WEIGHTS)]
    if others or not names:
        return others
    try:
        config = parse_object((folder / CONFIG).read_bytes())
    except (OSError, DocumentError):
        return names
    return [] if {"architecture", "pretrained_cfg"} <= config.keys() else names


def read_backbone(folder: Path) -> BackboneInfo:
    """Read what a backbone folder says about itself.

    Raises:
        UserError: ``folder`` is not a backbone folder.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: expected a backbone folder with {CONFIG} and {WEIGHTS}, {' and '.join(missing)} not found; "
            f"pretraining writes one at its end, `python backbones/main.py import` makes one from a checkpoint file"
        )
    # a folder that timm itself wrote has no provenance, and arguments only if there were some
    try:
        config = {"model_args": {}, "num_classes": 0, "provenance": {}, **parse_object((folder / CONFIG).read_bytes())}
        cfg = {"interpolation": "bicubic", **member(config, "pretrained_cfg", dict[str, Any])}
        _, height, width = member(cfg, "input_size", tuple[int, int, int])
        info = BackboneInfo(
            architecture=member(config, "architecture", str),
            model_args=member(config, "model_args", dict[str, Any]),
            num_classes=member(config, "num_classes", int),
            img_size=(height, width),
            mean=member(cfg, "mean", tuple[float, ...]),
            std=member(cfg, "std", tuple[float, ...]),
            interpolation=member(cfg, "interpolation", str),
            provenance=member(config, "provenance", dict[str, Any]),
        )
        check_model_args({**info.model_args, "num_classes": info.num_classes})
        check_statistics(info.mean, info.std)
        check_size(info.img_size, name="input_size")
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: expected timm's config of a model folder ({error})") from None
    return info


def read_state(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a backbone folder by timm's names."""
    read_backbone(folder)
    return read_tensors(folder / WEIGHTS)


def load_backbone(folder: Path, *, exact_windows: bool = True, **kwargs: Any) -> nn.Module:
    """Load timm's model with the folder's weights and exact dense windows; ``kwargs`` override the folder's arguments.

    Bias tables and position embeddings are resized where ``img_size`` or ``window_size`` differ. A new classifier
    (``num_classes``) starts random; any other weight that the folder lacks is an error, not a random number.

    Raises:
        UserError: the folder is damaged or does not fit ``kwargs``.
    """
    info = read_backbone(folder)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        source = stored_skeleton(info.architecture, {"num_classes": info.num_classes, **info.model_args})
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    # weights are fitted to a whole network: timm's wrapper for feature maps names them differently
    whole = {key: value for key, value in kwargs.items() if key not in ("features_only", "out_indices")}
    target = skeleton(info.architecture, **{"num_classes": info.num_classes, **info.model_args, **whole})
    state, resized = fit_state(read_state(folder), target, source=source)
    for change in resized:
        logger.info("%s: resized %s", folder, change)
    _check_complete(state, target, where=f"{folder} ({info.architecture}, {info.model_args}) as {kwargs}")
    if kwargs.get("num_classes", info.num_classes) not in (0, info.num_classes):
        head = {name.rpartition(".")[0] for name in target.state_dict() if is_classifier(name, target)}
        new = [layer for layer in head if layer in classifiers(target) or f"{layer}.weight" not in state]
        logger.info("%s: new, with random weights: %s", folder, ", ".join(sorted(new)))
    # handed over as a state, or timm would read the folder's own file, with the sizes before the change
    overlay = {"state_dict": state, "source": ""}
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    except TypeError as error:
        if not is_refusal(error):
            raise
        raise UserError(f"{folder / CONFIG}: expected timm's config of a model folder ({error})") from error
    for described in model.modules():
        for name in ("pretrained_cfg", "default_cfg"):
            getattr(described, name, {}).pop("state_dict", None)  # or the model would keep its first weights
    return use_exact_windows(model) if exact_windows else model


def _check_complete(state: Mapping[str, Tensor], target: nn.Module, *, where: str) -> None:
    """Refuse weights that lack one of the model's or have another shape; only the classifier may start random."""
    expected = {name: value for name, value in target.state_dict().items() if not is_classifier(name, target)}
    missing = {name for name in expected if name not in state}
    shapes = {
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    }
    faults = {"lacks": missing, "differs in": shapes}
    if missing or shapes:
        raise UserError(f"{where}: " + "; ".join(f"{kind} {_some(names)}" for kind, names in faults.items() if names))


def skeleton(architecture: str, **model_args: Any) -> nn.Module:
    """Make timm's model without memory for its weights, to read names and shapes from.

    Raises:
        UserError: timm does not know the architecture or refuses an argument.
    """
    with torch.device("meta"):
        return make_network(architecture, model_args)


def stored_skeleton(architecture: str, model_args: Mapping[str, Any]) -> nn.Module:
    """Make the network that a file describes, without memory for its weights.

    Raises:
        UserError: it cannot be made; whatever fails in between, the file is at fault.
    """
    try:
        return skeleton(architecture, **model_args)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{architecture} cannot be made with {dict(model_args)} ({reason})") from error


def make_network(architecture: str, model_args: Mapping[str, Any]) -> nn.Module:
    """Make timm's network of an architecture.

    Raises:
        UserError: timm does not know it, or timm or torch refuses an argument, or it would load other files.
    """
    if not timm.is_model(architecture):
        raise UserError(
            f"timm has no architecture {architecture!r}; `python backbones/main.py list` shows some, and a file that "
            "brings it is named with --extension"
        )
    check_model_args(model_args)
    try:
        return timm.create_model(architecture, **model_args)
    except Exception as error:  # timm and torch refuse sizes with whatever comes of them
        # An argument that is none of the network's: of a config's sizes, not every network has all.
        unknown = [name for name in model_args if str(error).endswith(f"unexpected keyword argument {name!r}")]
        if not is_refusal(error) and not (isinstance(error, TypeError) and unknown):
            raise
        reason = str(error) or type(error).__name__
        raise UserError(f"timm cannot make {architecture} with {dict(model_args)}: {reason}") from error


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's classification layers, to tell its weights from a backbone's."""
    names: Any = model.pretrained_cfg.get("classifier") or ()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return (names,) if isinstance(names, str) else tuple(names)


def is_classifier(name: str, model: nn.Module) -> bool:
    """Whether the tensor ``name`` belongs to a classification layer, or to one that is there for its sake."""
    return any(name.startswith(layer + ".") for layer in (*classifiers(model), *getattr(model, "head_layers", ())))


def _checked(state: Mapping[str, Tensor], model: nn.Module, *, where: str) -> dict[str, Tensor]:
    """Select what the model keeps of ``state``, on the CPU, or say what does not fit."""
    expected = model.state_dict()
    computed = {name for name, _ in model.named_buffers()} - set(expected)
    unexpected = [n for n in state if n not in expected and n not in computed and not is_classifier(n, model)]
    missing = [name for name in expected if name not in state]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(faults.values()):
        details = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise UserError(f"{where}: the weights do not fit the architecture they are handed off as; {details}")
    return fp32({name: state[name].detach().cpu().contiguous().clone() for name in expected})


def fp32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn what was stored in fewer bits into fp32; numbers of 64 bits and counts stay."""
    return {
        name: value.float() if value.is_floating_point() and value.element_size() < 4 else value
        for name, value in state.items()
    }


def _config(
    model: nn.Module,
    *,
    model_args: Mapping[str, Any],
    img_size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> dict[str, Any]:
    cfg: Any = model.pretrained_cfg
    return {
        "num_features": model.num_features,
        "model_args": dict(model_args),
        "pretrained_cfg": {
            "tag": "pretrained",
            "custom_load": False,
            "input_size": [3, *img_size],
            "fixed_input_size": bool(cfg.get("fixed_input_size", False)),
            "interpolation": interpolation,
            "crop_pct": cfg.get("crop_pct", 0.9),
            "crop_mode": cfg.get("crop_mode", "center"),
            "mean": list(mean),
            "std": list(std),
            "pool_size": None,
            "first_conv": cfg.get("first_conv"),
            "classifier": cfg.get("classifier"),
        },
    }


def input_size(model: nn.Module, model_args: Mapping[str, Any]) -> Size:
    """Find the height and width of the images that a network is made for."""
    cfg: Any = model.pretrained_cfg
    size: Any = model_args.get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = size or cfg["input_size"][1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _replace_folder(folder: Path, beside: Path) -> None:
    for file in beside.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    fsync_folder(beside)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    fsync_folder(folder.parent)
    if old.exists() and (not old.is_dir() or _others_in(old)):  # somebody's: not ours to delete
        numbers = itertools.count(1)
        aside = next(path for n in numbers if not (path := folder.with_name(f"{folder.name}.before-{n}")).exists())
        old.rename(aside)
        logger.warning("%s was no backbone, or not only one: it is kept as %s", folder, aside)
        return
    shutil.rmtree(old, ignore_errors=True)


def _some(names: Sequence[str] | set[str], *, shown: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:shown]) + (f" and {len(listed) - shown} more" if len(listed) > shown else "")
