"""Programs as users start them, alone and on several CPU processes, and what their runs leave behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from engine.checkpoint.store import newest_checkpoint

ROOT = Path(__file__).parents[2]
ACCELERATE = (
    sys.executable,
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--config_file",
    "pretrain/cpu_two_processes.yaml",
)


def start(*command: str, timeout_s: int = 150) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_"))}
    return subprocess.run(
        command, cwd=ROOT, env={**kept, "OMP_NUM_THREADS": "1"}, timeout=timeout_s, capture_output=True, text=True
    )


def launch(program: str, *words: str, processes: int = 2, timeout_s: int = 150) -> subprocess.CompletedProcess[str]:
    """Run ``program``/main.py under accelerate."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    more = ("--num_processes", str(processes), "--main_process_port", port)
    return start(*ACCELERATE, *more, f"{program}/main.py", *words, timeout_s=timeout_s)


def launch_well(program: str, *words: str, timeout_s: int = 170) -> None:
    """Run ``program``/main.py on two processes, which must succeed."""
    done = launch(program, *words, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def samples_of(folder: Path) -> list[dict]:
    """Read what the processes of a run saw, in the order of steps and micro-batches."""
    lines = [json.loads(line) for path in folder.glob("samples-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["micro_batch"]))


def results_of(folder: Path) -> list[dict]:
    """Read what a fine-tuning run measured."""
    return json.loads((folder / "evaluation.json").read_text())["results"]


def difference(one: Path, other: Path) -> float:
    """Compare two runs: the largest difference between their last weights, raw and averaged."""
    ours, theirs = (newest_checkpoint(folder / "checkpoints") for folder in (one, other))
    return max(
        float((ours.read_full(kind, name) - theirs.read_full(kind, name)).abs().max())
        for kind in ("weight", "ema")
        for name in ours.names(kind)
    )
