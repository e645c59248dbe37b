"""Code from outside the packages: ``--extension FILE`` imports a Python file before anything else is read.

The file puts what it brings into a registry: a backbone, a reconstruction target, a detector, a source of images
(``examples/extensions``). Only the command line names such files: no recipe, checkpoint or backbone folder can.
"""

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.errors import UserError

OPTION = "--extension"
PREFIX = "extension_"
"""Before the file's name in ``sys.modules``, so that it hides no other module."""


def load_extensions(argv: Sequence[str]) -> list[str]:
    """Import the files that ``--extension`` options name; return the other arguments.

    Raises:
        UserError: there is no such file, it is no Python file, or another of the same name is loaded.
    """
    files, rest = split_extensions(argv)
    for path in files:
        _load(path)
    return rest


def split_extensions(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate the files of ``--extension`` options from the other arguments."""
    files: list[Path] = []
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == OPTION:
            files.append(Path(value if equals else next(arguments, "")))
        else:
            rest.append(argument)
    return files, rest


def loaded_extensions() -> list[Path]:
    """The files that are loaded, in their order: for what starts a program with them."""
    return [Path(str(module.__file__)) for name, module in sys.modules.items() if name.startswith(PREFIX)]


def extension_arguments(files: Iterable[Path]) -> list[str]:
    """Write the options that load files again, in another process."""
    return [argument for path in files for argument in (OPTION, str(path))]


def _load(path: Path) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{OPTION} takes a Python file, got {str(path)!r}, which is none or not there")
    path = path.resolve()
    name = PREFIX + path.stem
    if name in sys.modules:
        loaded = sys.modules[name].__file__
        if loaded != str(path):
            raise UserError(f"{OPTION} {path}: {loaded} has the same name and is loaded already; rename one")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its classes name it, and pickles of them look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
