"""Write a backbone's weights as one file with the names that another code base reads."""

from pathlib import Path

import torch

from backbones.config import ExportNaming
from backbones.weights.foreign_files import read_source
from backbones.weights.key_names import to_microsoft, to_timm
from engine.checkpoint.tensor_files import write_tensors
from engine.errors import UserError
from engine.run.durable import replacing


def export_weights(source: Path, out: Path, *, naming: ExportNaming) -> int:
    """Write the weights of ``source`` (a backbone folder or whatever can be imported); returns the number of tensors.

    ``.safetensors`` holds the tensors alone; ``.pth`` wraps them as ``{"model": ...}``, as microsoft's loaders expect.
    Buffers that every model computes itself are not written: load with ``strict=False`` where code insists on them.

    Raises:
        UserError: the source cannot be read, has no such names, or ``out`` has another ending.
    """
    if out.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{out}: expected a file that ends in .safetensors or .pth")
    state = to_timm(read_source(source).state, keep_classifier=True).state
    if naming == "microsoft":
        state = to_microsoft(state)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        write_tensors(out, state, metadata={"format": "pt"})
    else:
        with replacing(out) as beside, beside.open("wb") as file:
            torch.save({"model": state}, file)
    return len(state)
