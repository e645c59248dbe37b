"""Says how far a long command is, how many images a second it does, and how long is left."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 5.0

T = TypeVar("T")


def watch(items: Iterable[T], *, total: int, name: str, console: Console, start: int = 0) -> Iterator[T]:
    """Pass items on, the first of which is number ``start`` of ``total``: with a bar on a terminal, else a line now and then."""
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
    began = said = time.monotonic()
    for done, item in enumerate(items, start=start + 1):
        yield item
        now = time.monotonic()
        if now - said >= LINE_EVERY_S or done == total:
            said = now
            speed = (done - start) / max(now - began, 1e-6)
            left = _duration((total - done) / speed)
            console.print(f"{name}: {done} of {total}, {speed:.0f} images/s, {left} left", highlight=False)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class _Speed(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")
