"""The files of one checkpoint, and nothing about when they are written.

    step-000010000/
    ├── index.json                {"digest": of the content, "content": step, state, files, tensors}
    ├── rank-00000.safetensors    the slices that process 0 owned, each flat, key "kind:name@offset"
    └── rank-00001.safetensors    …

``content.files`` lists each file's name, size and digest; ``content.tensors[kind][name]`` holds the whole tensor's
shape and type and its slices as [file number, offset, length]. Who wrote which slice matters to no reader. While a
checkpoint is written each process also leaves its part of the index as ``rank-00000.json``.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch

from engine.checkpoint.slices import TensorSlice
from engine.documents import member, parse_json
from engine.errors import UserError, at_path
from engine.run.durable import write_durably

FORMAT = 1
INDEX = "index.json"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in _DTYPES}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def slice_key(kind: str, name: str, offset: int) -> str:
    """Name a slice inside its safetensors file."""
    return f"{kind}:{name}@{offset}"


def write_slices(path: Path, slices: Sequence[TensorSlice]) -> dict[str, Any]:
    """Write host slices as one fsynced safetensors file and return this file's part of the index.

    Written here and not by ``safetensors.torch.save_file``, which copies every tensor to bytes first, does not
    fsync, and would have to be read back for the digest.
    """
    # Larger element types first keeps every tensor aligned, as the format's own writer does.
    ordered = sorted(slices, key=lambda s: -s.values.element_size())
    digest = blake2b(digest_size=32)
    size_bytes = 0
    with at_path(path), path.open("wb") as file:
        for block in chain([_header(ordered)], _blocks(ordered)):
            file.write(block)
            digest.update(block)
            size_bytes += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {
        "file": {"name": path.name, "size_bytes": size_bytes, "digest": digest.hexdigest()},
        "slices": [
            [s.kind, s.name, list(s.shape), DTYPE_NAMES[s.values.dtype], s.offset, s.values.numel()] for s in ordered
        ],
    }


def _header(slices: Sequence[TensorSlice]) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for s in slices:
        begin, end = end, end + s.values.numel() * s.values.element_size()
        key = slice_key(s.kind, s.name, s.offset)
        assert key not in entries, f"slice {key} is given twice"
        entries[key] = {"dtype": _DTYPES[s.values.dtype], "shape": [s.values.numel()], "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(slices: Sequence[TensorSlice]) -> Iterator[memoryview]:
    for s in slices:
        if s.values.numel():
            yield memoryview(cast(Any, s.values.view(torch.uint8).numpy()))


def make_index(step: int, state: dict[str, Any], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the processes' parts of the index and prove that each element of each tensor is there exactly once."""
    tensors: dict[str, dict[str, Any]] = {}
    for number, part in enumerate(parts):
        for kind, name, shape, dtype, offset, length in part["slices"]:
            entry = tensors.setdefault(kind, {}).setdefault(name, {"shape": shape, "dtype": dtype, "slices": []})
            assert (entry["shape"], entry["dtype"]) == (shape, dtype), (
                f"{kind} {name}: {entry} against {shape}, {dtype}"
            )
            entry["slices"].append([number, offset, length])
    for kind, entries in tensors.items():
        for name, entry in entries.items():
            entry["slices"] = _in_order(f"{kind} {name}", entry)
    return {"format": FORMAT, "step": step, "state": state, "files": [p["file"] for p in parts], "tensors": tensors}


def _in_order(what: str, entry: dict[str, Any]) -> list[list[int]]:
    """Sort a tensor's slices by offset, and refuse gaps and overlaps: a bug of ours, found before anything is lost."""
    ordered = sorted((s for s in entry["slices"] if s[2]), key=lambda s: s[1])
    end = 0
    for _, offset, length in ordered:
        assert offset == end, f"{what}: elements {min(offset, end)} to {max(offset, end)} are saved not once"
        end += length
    size = math.prod(entry["shape"])
    assert end == size, f"{what}: {end} of {size} elements are saved"
    return ordered


def write_index(folder: Path, content: dict[str, Any]) -> None:
    """Write ``index.json``, which makes the checkpoint in ``folder`` readable."""
    text = json.dumps(content)
    write_durably(folder / INDEX, f'{{"digest": "{_digest(text)}",\n"content": {text}}}'.encode())


def read_index(folder: Path) -> dict[str, Any]:
    """Read ``index.json`` and check its digest.

    Raises:
        UserError: it is missing or damaged, or of a later format.
    """
    path = folder / INDEX
    try:
        whole = parse_json(path.read_bytes())
        content: dict[str, Any] = member(whole, "content", dict)
        intact = member(whole, "digest", str) == _digest(json.dumps(content))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no complete checkpoint: it has no {INDEX}; expected a folder like "
            "runs/x/checkpoints/step-000010000"
        ) from None
    except (OSError, UserError) as error:
        raise UserError(f"{path} is damaged: {getattr(error, 'strerror', error)}") from None
    if not intact:
        raise UserError(f"{path} is damaged: its digest does not match its content")
    if content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']}, this version reads {FORMAT}")
    return content


def check_file(path: Path, *, size_bytes: int, digest: str | None) -> None:
    """Compare a file with what the index says; ``digest=None`` compares the size only.

    Raises:
        UserError: it is missing, shorter or longer, or other bytes are in it.
    """
    try:
        actual_bytes = path.stat().st_size
        if actual_bytes != size_bytes:
            raise UserError(f"{path} is truncated or damaged: {actual_bytes} bytes, expected {size_bytes}")
        if digest is not None:
            with path.open("rb") as file:
                actual = blake2b(digest_size=32)
                while block := file.read(1 << 22):
                    actual.update(block)
            if actual.hexdigest() != digest:
                raise UserError(f"{path} is damaged: its digest does not match the index")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=32).hexdigest()
