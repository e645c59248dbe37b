"""How far a command is, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from data.commands.console import watch


def watched(*, terminal, start=0, total=10):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    assert list(watch(range(start, total), total=total, name="writing", console=console, start=start)) == list(
        range(start, total)
    )
    return out.getvalue()


@pytest.mark.parametrize("start", [0, 7])
def test_a_bar_on_a_terminal_ends_full_wherever_it_began(start):
    said = watched(terminal=True, start=start)
    assert "10/10" in said.rpartition("writing")[2]
    assert "images/s" in said


@pytest.mark.parametrize("start", [0, 7])
def test_a_log_gets_a_last_line_with_everything(start):
    lines = watched(terminal=False, start=start).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("writing: 10 of 10, ")
    assert lines[0].endswith("images/s, 0:00:00 left")
