"""What the data program's commands say while they run: lines that are never broken, log lines and progress."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 5.0

T = TypeVar("T")


def start_console() -> Console:
    """Open the console of a command, on which log lines appear, too."""
    console = Console()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_ConsoleHandler(console)])
    return console


def say(console: Console, text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


class _ConsoleHandler(logging.Handler):
    """Prints log lines above a progress bar, with the level in front where it is more than information."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        say(self._console, level + self.format(record))


def watch(items: Iterable[T], *, total: int, name: str, console: Console, start: int = 0) -> Iterator[T]:
    """Pass items on, the first of which is number ``start`` of ``total``, and show how far they are.

    That is a bar on a terminal, else a line now and then.
    """
    if not console.is_terminal:
        yield from _watch_in_lines(items, total=total, name=name, console=console, start=start)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=total, completed=start)
        for item in items:
            yield item
            progress.advance(task)


def _watch_in_lines(items: Iterable[T], *, total: int, name: str, console: Console, start: int) -> Iterator[T]:
    began = last_line = time.monotonic()
    for done, item in enumerate(items, start=start + 1):
        yield item
        now = time.monotonic()
        if now - last_line >= LINE_EVERY_S or done == total:
            last_line = now
            speed = (done - start) / max(now - began, 1e-6)
            remaining = _duration((total - done) / speed)
            console.print(f"{name}: {done} of {total}, {speed:.0f} images/s, {remaining} left", highlight=False)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class _Speed(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")
