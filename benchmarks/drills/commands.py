"""Ways to try a program: disturbed once it has said something, or called many times where it starts slowly."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drills.inputs.case import ROOT, STOPPED_WITHIN_S
from data.writing.writer import NewSample, ShardLimits, write_shards

TINY = ("--data.batch-size", "4", "--data.micro-batch-size", "4", "--backbone.img-size", "64", "64")


def shards_in(folder: Path, *, count: int = 8, side_px: int = 64) -> Path:
    """Write a few images of noise as shards."""
    rng = np.random.default_rng(0)
    samples: list[NewSample] = []
    for number in range(count):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)).save(content, "JPEG")
        samples.append(NewSample(source=f"{number}.jpg", members={"jpg": content.getvalue()}, label=number % 2))
    write_shards(samples, out=folder / "shards", classes=("a", "b"), limits=ShardLimits())
    return folder / "shards"


def pretraining(shards: str = "shards", *more: str, steps: int = 1, workers: int = 0) -> list[str]:
    """Name the command of the smallest pretraining."""
    recipe = ROOT / "pretrain" / "recipes" / "tiny_cpu.yaml"
    command = ["pretrain/main.py", "--recipe", str(recipe), "--data.shards", shards, "--run.folder", "run"]
    command += ["--optimizer.steps", str(steps), "--optimizer.warmup-steps", "0", "--data.workers", str(workers)]
    return [*command, *TINY, *more]


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
