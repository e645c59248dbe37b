"""Ways to try a program: disturbed once it has said something, or called many times where it starts slowly."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.drills.trials.case import ROOT, STOPPED_WITHIN_S


def disturbed(
    folder: Path,
    command: Sequence[str],
    *,
    once: str = "",
    act: str = "",
    setup: str = "",
    limit_s: int = STOPPED_WITHIN_S,
) -> list[str]:
    """Write a program that starts a command and, once it says what matches ``once``, does ``act`` to ``process``.

    From then on the command has ``limit_s`` to end. ``act`` and ``setup`` are Python; ``setup`` runs
    first, in the process that becomes the command.
    """
    script = folder / "disturb.py"
    script.write_text(
        textwrap.dedent(
            f"""\
            import os, re, signal, subprocess, sys, time
            import psutil
            def setup():
                {setup or "pass"}
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, also in what is started
            program, *options = {list(command)!r}
            process = subprocess.Popen(
                [sys.executable, os.path.join({str(ROOT)!r}, program), *options],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=setup,
            )
            if {once!r}:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    if re.search({once!r}, line):
                        break
                {act or "pass"}
                limit_s = {limit_s}
            else:
                limit_s = 80
            try:
                print(process.communicate(timeout=limit_s)[0])
            except subprocess.TimeoutExpired:
                process.kill()
                sys.exit(f"still running after {{limit_s}} s: {{process.communicate()[0]}}")
            sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)
            """
        )
    )
    return [str(script)]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A call that has to end with one line and exit code 1."""

    name: str
    """What it is about."""
    options: Sequence[str]
    """Of the program."""
    says: str
    """A pattern in what it writes."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to its environment."""


def refusals(folder: Path, program: str, calls: Sequence[Refusal]) -> list[str]:
    """Write a program that makes many calls of another one in one process, and ends with 1 where one is not refused.

    ``program`` is a package with an ``app``; it prints a line for each call.
    """
    script = folder / "refusals.py"
    tried = [(call.name, [f"{program}/main.py", *call.options], dict(call.environment), call.says) for call in calls]
    script.write_text(
        textwrap.dedent(
            f"""\
            import contextlib, io, os, re, sys, traceback
            from {program}.app import main
            wrong = 0
            for name, sys.argv, environment, says in {tried!r}:
                said, code = io.StringIO(), 0
                before = dict(os.environ)
                os.environ.update(environment)
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                    try:
                        main()
                    except SystemExit as stop:
                        code = stop.code
                    except BaseException:
                        traceback.print_exc()
                        code = "a traceback"
                os.environ.clear()
                os.environ.update(before)
                text = " ".join(said.getvalue().split())
                fault = code != 1 or not re.search(says, text)
                wrong += fault
                print("FAULT" if fault else "fine", name, code, text[-300:] if fault else "", flush=True)
            sys.exit(bool(wrong))
            """
        )
    )
    return [str(script)]
