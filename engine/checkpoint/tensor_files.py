"""Safetensors files with whole tensors: read whole or refused, written beside their place and renamed."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import UserError
from engine.run.durable import replacing


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        OSError: the system refuses it.
        UserError: it is truncated or something else.
    """
    with path.open("rb"):  # says what the system refuses; safetensors says only that it did
        pass
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: expected a whole safetensors file, {error}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device as a safetensors file that other programs read.

    Raises:
        OSError: the system refuses it.
    """
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as beside:
        beside.touch()  # with the permissions that new files get here: safetensors' own are for their owner alone
        mode = stat.S_IMODE(beside.stat().st_mode)
        save_file(host, beside, metadata=metadata)
        beside.chmod(mode)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
