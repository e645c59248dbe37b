"""Programs end with one line where their user has to act, and with a traceback where we have."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine.errors import (
    BROKEN_PIPE,
    INTERRUPTED,
    MACHINE_REMEDIES,
    REFUSAL,
    REMEDIES,
    PassingError,
    UserError,
    at_path,
    is_refusal,
    one_line_errors,
)
from engine.recipe import parse


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
    assert said.startswith("error: runs/x/metrics.jsonl: No space left on device; free some space, then start again")


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


def test_a_refusal_without_a_path_gets_the_one_that_is_written_to(capsys):
    @one_line_errors
    def main():
        with at_path(Path("runs/x/metrics.jsonl")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: runs/x/metrics.jsonl: No space left on device; free some space")


def test_a_system_error_in_words_becomes_one_again():
    with (
        pytest.raises(OSError, match=r"No space left on device: 'a\.safetensors'") as full,
        at_path(Path("a.safetensors")),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="something else"), at_path(Path("a")):
        raise RuntimeError("something else")


@pytest.mark.parametrize("number", MACHINE_REMEDIES)
def test_what_the_machine_refuses_is_one_line_without_a_path(number, capsys):
    with pytest.raises(SystemExit):
        raising(OSError(number, os.strerror(number)))()
    assert capsys.readouterr().err == f"error: {os.strerror(number)}; {MACHINE_REMEDIES[number]}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "DataLoader worker (pid 71) is killed by signal: Killed. ",
            "loader worker 71 was killed by the signal Killed; the machine may have run out of memory",
        ),
        (
            "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            "loader worker 71 was killed by the signal Bus error; shared memory is full: enlarge /dev/shm",
        ),
        (
            "Too many open files. Communication with the workers is no longer possible. Please increase the limit",
            "Too many open files; raise the limit of open files: ulimit -n",
        ),
        ("received 0 items of ancdata", "Too many open files; raise the limit of open files"),
        ("DataLoader worker (pid(s) 71, 72) exited unexpectedly", "loader worker 71, 72 ended unexpectedly; "),
        (
            "[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:46412",
            "another process of this run has ended",
        ),
    ],
)
def test_a_process_that_has_gone_is_one_line(words, said, capsys):
    with pytest.raises(SystemExit):
        raising(RuntimeError(words))()
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_what_steers_a_terminal_is_not_shown(capsys):
    with pytest.raises(SystemExit):
        raising(UserError("a server said \x1b[2J\x07\u202etxt"))()
    assert capsys.readouterr().err == "error: a server said \ufffd[2J\ufffd\ufffdtxt\n"


def test_a_bug_in_a_config_keeps_its_traceback_where_the_parser_takes_it_for_a_wrong_option(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Section:
        x: int = 0

        def __post_init__(self):
            _first, _second = (1, 2, 3)

    @dataclass(frozen=True, kw_only=True)
    class Config:
        section: Section

    @one_line_errors
    def main():
        parse(Config, ["--section.x", value])

    value = "3"
    with pytest.raises(ValueError, match="too many values to unpack"):
        main()
    value = "three"
    with pytest.raises(SystemExit):
        main()
    assert "invalid literal" in capsys.readouterr().err


def test_a_recipe_in_another_encoding_is_one_line(tmp_path, capsys):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str = ""

    (tmp_path / "a.yaml").write_bytes("name: café".encode("latin-1"))

    @one_line_errors
    def main():
        parse(Config, ["--recipe", str(tmp_path / "a.yaml")])

    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith(f"error: {tmp_path / 'a.yaml'}: expected text in UTF-8, but line 1")
    assert capsys.readouterr().out == ""


def test_who_raised_an_error_tells_a_refusal_from_a_bug():
    def error_of(function):
        try:
            function()
        except Exception as error:
            return error
        raise AssertionError

    def bug():
        _first, _second = (1, 2, 3)

    assert is_refusal(error_of(lambda: json.loads("{")))
    assert is_refusal(error_of(lambda: torch.nn.Linear(-1, 2)))
    assert not is_refusal(error_of(bug))


def test_a_lack_of_memory_is_one_line(capsys):
    with pytest.raises(SystemExit):
        raising(MemoryError("Unable to allocate 35.5 PiB"))()
    assert capsys.readouterr().err.startswith("error: Unable to allocate 35.5 PiB; the machine has not that much")


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


@pytest.mark.parametrize(("error", "noted"), [(UserError("no\nwindow"), "no window"), (PassingError("in use"), None)])
def test_launcher_is_told_of_refusals_that_would_come_again(tmp_path, monkeypatch, error, noted):
    monkeypatch.setenv(REFUSAL, str(tmp_path / "refusal"))
    with pytest.raises(SystemExit):
        raising(error)()
    assert (tmp_path / "refusal").exists() == (noted is not None)
    assert noted is None or (tmp_path / "refusal").read_text() == noted
