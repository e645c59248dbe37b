"""Files that a kill or a power cut leaves whole: the old content or the new, never half."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import at_path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; what is there in the end takes its place, and a failure leaves nothing.

    Raises:
        OSError: the system refuses it; names ``path``.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with at_path(path):
        try:
            yield beside
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file beside its place, fsync and rename it."""
    with replacing(path) as beside, beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add whole lines to a text file."""
    with at_path(path), path.open("a") as file:
        file.write(text)


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
