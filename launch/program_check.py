"""What only a program itself can refuse, found before its job is queued: its command `check`, in a process of its own.

The launcher imports no torch, and yet an architecture, its window and its image size are known to timm alone.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.errors import REFUSAL, UserError
from engine.extensions import extension_arguments
from launch.program_calls import PROGRAMS, Call

TIMEOUT_S = 300
AT_ONCE = 4
ERROR, SKIP = "error: ", "--skip-check"


def check_with_programs(calls: Sequence[Call]) -> list[str]:
    """Let the programs of some calls look at their recipes; return what kept one from it.

    A login node may lack what the nodes have, such as torch in a container, memory, or a way to the data: the job will
    tell then. Only what would be refused at every start is a refusal here.

    Raises:
        UserError: one refuses its recipe, in its words.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [reason for reason in pool.map(_check, calls) if reason is not None]


def _check(call: Call) -> str | None:
    if call.program not in PROGRAMS or not call.recipe:
        return None
    with tempfile.TemporaryDirectory() as folder:
        recipe, noted = Path(folder) / "recipe.yaml", Path(folder) / "refusal"
        recipe.write_text(call.recipe)  # which may be read several times, unlike a pipe
        command = [sys.executable, str(call.script), "check", "--recipe", str(recipe)]
        try:
            done = subprocess.run(
                [*command, *extension_arguments(call.extensions)],
                env={**os.environ, REFUSAL: str(noted)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{call.program} could not look at the recipe here in {TIMEOUT_S} s; {SKIP} leaves that out"
        except OSError as error:
            return f"{call.program} could not look at the recipe here: {error}"
        refusal = noted.read_text() if noted.exists() else None
    if not done.returncode:
        return None
    if refusal is not None:
        own_words = re.sub(rf" \([^()]*{re.escape(folder)}[^()]*\)$", "", refusal)  # the user knows no such file
        raise UserError(f"{own_words} (if that will be right when the job starts: {SKIP})")
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
    return f"{call.program} could not look at the recipe here: {last.removeprefix(ERROR)}"
