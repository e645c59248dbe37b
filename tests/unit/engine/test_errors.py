"""Programs end with one line where their user has to act, and with a traceback where we have."""

import errno
import os
import subprocess
import sys

import pytest

from engine.errors import BROKEN_PIPE, INTERRUPTED, REMEDIES, UserError, one_line_errors


def raising(error):
    @one_line_errors
    def main():
        raise error

    return main


def test_a_user_error_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        raising(UserError("expected 2,\n  got 3"))()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: expected 2, got 3\n"


def test_a_full_disk_is_one_line_that_says_what_to_do(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl")
    with pytest.raises(SystemExit):
        raising(full)()
    said = capsys.readouterr().err
    assert "No space left on device: 'runs/x/metrics.jsonl'; free some space, then start again" in said


@pytest.mark.parametrize("number", REMEDIES)
def test_what_the_system_refuses_at_a_path_is_one_line_with_the_path_and_what_to_do(number, capsys):
    with pytest.raises(SystemExit) as ended:
        raising(OSError(number, os.strerror(number), "some/place"))()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: some/place: {os.strerror(number)}; {REMEDIES[number]}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "no"),
        PermissionError(errno.EACCES, "of no path"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        raising(error)()


def test_an_interrupt_ends_without_a_traceback():
    with pytest.raises(SystemExit) as ended:
        raising(KeyboardInterrupt())()
    assert ended.value.code == INTERRUPTED


def test_a_reader_that_goes_away_ends_a_program_silently():
    program = (
        "from engine.errors import one_line_errors\n"
        "@one_line_errors\n"
        "def main():\n"
        "    for number in range(10**6): print(number)\n"
        "main()\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait(30) == BROKEN_PIPE
    writer.stderr.close()
