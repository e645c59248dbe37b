"""Folders that a command fills with its answers: absent, empty, or its own; others hold what must not be lost."""

from collections.abc import Callable
from pathlib import Path

from engine.errors import UserError


def check_own_folder(folder: Path, *, marks: tuple[str, ...], is_own: Callable[[str], bool], option: str) -> None:
    """Refuse to write into a folder with other things in it than an earlier call of the same command left.

    Args:
        folder: where to write.
        marks: names of files of which the command leaves at least one, also where it was killed.
        is_own: whether it is a name that the command gives to files.
        option: how another folder is chosen.

    Raises:
        UserError: it is a file, or a folder of somebody else's; the message names what lies there.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder; choose another one with {option}")
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if not is_own(name)] if set(marks) & set(names) else names
    if others:
        raise UserError(
            f"{folder} holds {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}, which might be lost; choose "
            f"an empty folder with {option}"
        )
