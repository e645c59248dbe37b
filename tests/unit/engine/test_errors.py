"""Programs end with one line where their user has to act, and with a traceback where we have."""

import errno
import os

import pytest

from engine.errors import one_line_errors


def raising(error):
    @one_line_errors
    def main():
        raise error

    return main


def test_a_value_error_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        raising(ValueError("expected 2,\n  got 3"))()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: expected 2, got 3\n"


def test_a_full_disk_is_one_line_that_says_what_to_do(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl")
    with pytest.raises(SystemExit):
        raising(full)()
    said = capsys.readouterr().err
    assert "No space left on device: 'runs/x/metrics.jsonl'; free some space, then start again" in said


def test_other_errors_come_as_they_are():
    with pytest.raises(PermissionError):
        raising(PermissionError(errno.EACCES, "no"))()
    with pytest.raises(KeyError):
        raising(KeyError("x"))()
