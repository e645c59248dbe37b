"""What a kind of source says of itself, and how the kind of a folder or file is told."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.sources.config import AUTO, Write
from data.sources.registry import FORMATS
from data.sources.source import Source
from data.sources.trees.splits import levels_of
from engine.errors import UserError

FOLDER = "folder"
"""The kind that takes any folder of images."""


@dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """A kind of source. Its module keeps it as ``FORMAT`` and stands in data/sources/registry.py."""

    open: Callable[[Write, Path], Mapping[str, Source]]
    """Finds the samples by split, `train` alone where it is not divided; the folder is empty and lasts till the end."""
    says: str = "what an extension reads"
    """What a source of this kind is, for the question which kind is meant."""
    recognise: Callable[[Path], bool] = lambda source: False
    """Tells by what lies in a folder or file whether it is of this kind, for `--format auto`."""
    options: tuple[str, ...] = ()
    """Options of `Write` that it reads and not every kind does: such an option is refused with the other kinds."""
    narrows: tuple[str, ...] | None = None
    """Kinds that take the same files for something more general, and are not asked where this one recognises a source;
    None: all that were registered before it."""
    is_drawn: bool = False
    """Whether its samples are drawn: `--source` is then its own name, and it holds out `--val-fraction` itself."""


def source_format(name: str) -> SourceFormat:
    """Import the kind of source that is registered under ``name``."""
    return importlib.import_module(FORMATS[name]).FORMAT


def find_source(options: Write) -> tuple[str, str]:
    """Tell of which kind the source is, unless that is given, and where its data begin: in it, or in a folder in it.

    Raises:
        UserError: no kind recognises it, or several do.
    """
    if options.source in FORMATS and source_format(options.source).is_drawn and options.format == AUTO:
        return options.source, options.source
    path = Path(options.source)
    for level in levels_of(path):
        names = _readings(level) if options.format == AUTO else [options.format]
        if len(names) > 1:
            readings = ", ".join(f"{source_format(name).says} (--format {name})" for name in names)
            raise UserError(f"{level} can be read as {readings}: say which is meant, or move what is not elsewhere")
        if names and names != [FOLDER] and _recognises(names[0], level):
            return names[0], str(level)
    if options.format != AUTO or path.is_dir():
        return FOLDER if options.format == AUTO else options.format, options.source
    state = "a file" if path.is_file() else "missing"
    raise UserError(
        f"expected a folder of images, of shards or of a data set, a table (.csv, .tsv, .txt, .parquet) or a COCO "
        f".json, but {options.source} is {state}"
    )


def _readings(level: Path) -> list[str]:
    """List the kinds that recognise a source, but for those that take the same files for something more general."""
    names = [name for name in FORMATS if _recognises(name, level)]
    general = {other for place, name in enumerate(names) for other in _narrowed(name, before=names[:place])}
    return [name for name in names if name not in general]


def _narrowed(name: str, *, before: list[str]) -> Sequence[str]:
    narrows = source_format(name).narrows
    return before if narrows is None else narrows


def _recognises(name: str, level: Path) -> bool:
    try:
        return source_format(name).recognise(level)
    except UserError:  # it is of this kind, but cannot be understood: opening it says why
        return True


def refuse_resize(options: Write, *, what: str) -> None:
    """Refuse to shrink images beside which lies ``what`` has its place in pixels.

    Raises:
        UserError: a size is asked for.
    """
    if options.size is not None:
        raise UserError(f"--size cannot be used with {what}, which would no longer fit; resize when training")


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
