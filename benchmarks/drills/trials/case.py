"""One input, the command that it is given to, and what has to come of it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
STOPPED_WITHIN_S = 10


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a user brings, and what the program owes them."""

    name: str
    make: Callable[[Path], list[str]]
    """Writes the input into an empty folder; returns the command: program, as ``data/main.py``, and its options. Paths
    are seen from the folder, in which the command runs."""
    says: str = ""
    """A pattern that the output has to hold (standard output and errors together)."""
    never_says: str = "Traceback"
    """A pattern that the output must not hold."""
    code: int | None = 0
    """The exit code; None for any but 0."""
    check: Callable[[Path], str | None] = lambda _: None
    """Looks at what the command left in the folder; returns what is wrong with it."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to the command's environment; an empty value removes a variable."""
    limit_s: float = 90
    """The command may run no longer."""
    stop_after_s: float | None = None
    """When SIGTERM comes; the command has to end within 10 s of it."""


def try_case(case: Case, folder: Path) -> str | None:
    """Run a case in ``folder``, which is made; return what went wrong, None if nothing did."""
    folder.mkdir(parents=True)
    program, *options = case.make(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", **case.environment}
    environment = {name: value for name, value in environment.items() if value}
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / program), *options],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = _wait(process, case)
        output.seek(0)
        text = output.read()
    return late or _fault(case, folder, code=process.returncode, text=text)


def _wait(process: subprocess.Popen[bytes], case: Case) -> str | None:
    """Wait for the end within the limits; the whole session of a command that misses them is killed."""
    try:
        if case.stop_after_s is None:
            process.wait(case.limit_s)
            return None
        time.sleep(case.stop_after_s)
        process.send_signal(signal.SIGTERM)
        process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"still running after {error.timeout:.0f} s"
    return None


def _fault(case: Case, folder: Path, *, code: int, text: str) -> str | None:
    end = " ".join(text.split())[-300:]
    if code != case.code and (case.code is not None or code == 0):
        return f"exit code {code} where {'not 0' if case.code is None else case.code} is right: {end}"
    if not re.search(case.says, " ".join(text.split())):
        return f"does not say {case.says!r}: {end}"
    if re.search(case.never_says, text):
        return f"says {case.never_says!r}: {end}"
    return case.check(folder)
