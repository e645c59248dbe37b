"""What a kind of source says of itself, and how the kind of a folder or file is told."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.sources.config import Write
from data.sources.registry import FORMATS
from data.sources.source import Source
from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """A kind of source. Its module keeps it as ``FORMAT`` and stands in data/sources/registry.py."""

    open: Callable[[Write, Path], Mapping[str, Source]]
    """Finds the samples by split, `train` alone where it is not divided; the folder is empty and lasts till the end."""
    recognise: Callable[[Path], bool] = lambda source: False
    """Tells by what lies in a folder or file whether it is of this kind, for `--format auto`."""
    options: tuple[str, ...] = ()
    """Options of `Write` that it reads and not every kind does: such an option is refused with the other kinds."""
    is_drawn: bool = False
    """Whether its samples are drawn: `--source` is then its own name, and it holds out `--val-fraction` itself."""


def source_format(name: str) -> SourceFormat:
    """Import the kind of source that is registered under ``name``."""
    return importlib.import_module(FORMATS[name]).FORMAT


def detect_format(source: str) -> str:
    """Tell by what lies in a folder or file of which kind it is.

    Raises:
        UserError: no kind recognises it.
    """
    if source in FORMATS and source_format(source).is_drawn:
        return source
    path = Path(source)
    for name in reversed(FORMATS):
        if source_format(name).recognise(path):
            return name
    state = "a file" if path.is_file() else "missing"
    raise UserError(
        f"expected a folder of images, of shards or of a data set, a table (.csv, .tsv, .parquet) or a COCO .json, "
        f"but {source} is {state}"
    )


def check_options(options: Write, *, name: str) -> None:
    """Refuse options that only other kinds of sources read.

    Raises:
        UserError: says which kinds read it.
    """
    readers: dict[str, list[str]] = {}
    for kind in FORMATS:
        for option in source_format(kind).options:
            readers.setdefault(option, []).append(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for option, kinds in readers.items():
        if name not in kinds and getattr(options, option) != defaults[option]:
            raise UserError(
                f"--{option.replace('_', '-')} is read with --format {' or '.join(kinds)}, "
                f"but {options.source} is {name}"
            )
