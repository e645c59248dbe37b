"""What only a program itself can refuse, found before its job is queued: its command `check`, in a process of its own.

The launcher imports no torch, and yet an architecture, its window and its image size are known to timm alone.
"""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.errors import UserError
from engine.extensions import extension_arguments
from launch.program_calls import PROGRAMS, Call

TIMEOUT_S = 300
AT_ONCE = 4
ERROR = "error: "


def check_with_programs(calls: Sequence[Call]) -> list[str]:
    """Let the programs of some calls look at their recipes; return what kept one from it.

    A login node may lack what the nodes have, such as torch in a container, or memory: the job itself will tell then.

    Raises:
        UserError: one refuses its recipe, in its words.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [reason for reason in pool.map(_check, calls) if reason is not None]


def _check(call: Call) -> str | None:
    if call.program not in PROGRAMS or not call.recipe:
        return None
    # not as a file: the message would name its lines
    command = [
        sys.executable,
        str(call.script),
        "check",
        "--recipe",
        "/dev/stdin",
        *extension_arguments(call.extensions),
    ]
    try:
        done = subprocess.run(
            command, input=call.recipe, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{call.program} could not look at the recipe here: {error}"
    if not done.returncode:
        return None
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
    if last.startswith(ERROR):
        raise UserError(last.removeprefix(ERROR))
    return f"{call.program} could not look at the recipe here: {last}"
