"""Open other people's checkpoint files without running what is in them.

A ``.pth`` file is a pickle: opened freely it can run any code. Here only tensors, plain containers and the few harmless
classes that published files hold are made; anything else is refused, and never called. Our own folders are read, too.
"""

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from backbones.weights.handoff import CONFIG, read_backbone, read_state
from engine.checkpoint.store import Checkpoint, newest_checkpoint, open_checkpoint
from engine.checkpoint.tensor_files import read_tensors
from engine.documents import DocumentError, member
from engine.errors import UserError

T = TypeVar("T")


def _latin1(text: str, encoding: str) -> bytes:
    """Turn into bytes what pickle has as text: the number in one of numpy's scalars."""
    if encoding != "latin1":
        raise UserError(f"expected bytes in latin1, got {encoding}")
    return text.encode("latin1")


def _scalar(kind: "np.dtype[Any]", content: bytes = b"") -> Any:
    """Make one of numpy's scalars, such as a best accuracy, unless it holds an object."""
    if kind.hasobject or len(content) != kind.itemsize:
        raise UserError(f"expected a number of numpy's, got {len(content)} bytes for {kind}")
    return np.frombuffer(content, kind)[0]


_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    PosixPath,
    PurePosixPath,
    (OrderedDict, "yacs.config.CfgNode"),  # read as the plain mapping that it is
    np.dtype,
    *(type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], "?")),
    (_scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 and 2 name it
    (_scalar, "numpy._core.multiarray.scalar"),
    (_latin1, "_codecs.encode"),
]
_WRAPPERS = ("model", "state_dict", "module")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights as a file has them, and what the file says about them."""

    state: dict[str, Tensor]
    architecture: str | None = None
    model_args: dict[str, Any] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    provenance: dict[str, Any]


def read_source(path: Path) -> Source:
    """Read weights of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file, backbone folder, checkpoint or run.

    Raises:
        UserError: there is no such file, it is damaged, holds no weights, or holds what is not safe to open.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint file, a backbone folder or a run folder")
    content = read_tensors(path) if path.suffix == ".safetensors" else load_pickled(path)
    return Source(state=_weights_in(content, path), provenance={"file": path.name, "sha256": _sha256(path)})


def load_pickled(path: Path) -> Any:
    """Open what ``torch.save`` wrote, if it is made of tensors, plain containers and harmless classes only.

    Raises:
        UserError: it holds anything else, or is no such file.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)|function ([^\n]+)|instantiate ([\w.]+)", str(error))
        named = next((group for group in match.groups() if group), "") if match else ""
        raise UserError(
            f"{path}: holds {named or 'objects'}, which this program does not open, because making it could run code; "
            f"expected tensors in plain containers: ask its author for a safetensors file"
        ) from None
    except OSError as error:
        # with a number it is the system's (no permission, disk failed), without one torch's, about the content
        if error.errno is not None:
            raise
        raise UserError(f"{path}: expected a whole PyTorch checkpoint file ({_first_line(error)})") from None
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        kind = "truncated or damaged" if zipfile.is_zipfile(path) or path.stat().st_size else "empty"
        raise UserError(
            f"{path}: expected a whole PyTorch checkpoint file, it is {kind} ({_first_line(error)})"
        ) from None


def _weights_in(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a mapping of names to tensors, got a {type(content).__name__}")
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    state = {name: value for name, value in tensors.items() if isinstance(name, str)}
    if not state:
        raise UserError(
            f"{path}: no tensors found at the top or under {', '.join(_WRAPPERS)}; "
            f"it has {', '.join(map(str, content))[:200]}"
        )
    return state


def _read_folder(path: Path) -> Source:
    if (path / CONFIG).is_file():
        info = read_backbone(path)
        return Source(
            state=read_state(path),
            architecture=info.architecture,
            model_args=info.model_args,
            mean=info.mean,
            std=info.std,
            provenance=info.provenance,
        )
    if (path / "checkpoints").is_dir():
        checkpoint = newest_checkpoint(path / "checkpoints")
        if checkpoint is None:
            raise UserError(f"{path}: this run folder has no complete checkpoint yet")
        return _from_checkpoint(checkpoint)
    return _from_checkpoint(open_checkpoint(path))


def _from_checkpoint(checkpoint: Checkpoint) -> Source:
    names = [name for kind in ("weight", "buffer") for name in checkpoint.names(kind)]
    weights = set(checkpoint.names("weight"))
    try:
        said = _said_by(checkpoint.state)
    except DocumentError as error:
        raise UserError(f"{checkpoint.path}: what it says of its network is nonsense: {error}") from None
    return Source(
        state={name: checkpoint.read_full("weight" if name in weights else "buffer", name) for name in names},
        **said,
        provenance=json.loads(json.dumps({"checkpoint": checkpoint.path.name, **checkpoint.state})),
    )


def _said_by(state: Mapping[str, Any]) -> dict[str, Any]:
    """Read architecture, arguments, mean and std, of those that a checkpoint has."""
    augment = _stored(_stored(state, "recipe", dict[str, Any]) or {}, "augment", dict[str, Any]) or {}
    return {
        "architecture": _stored(state, "architecture", str),
        "model_args": _stored(state, "model_args", dict[str, Any]),
        "mean": _stored(augment, "mean", tuple[float, ...]),
        "std": _stored(augment, "std", tuple[float, ...]),
    }


def _stored(tree: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    return None if tree.get(name) is None else member(dict(tree), name, kind)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
