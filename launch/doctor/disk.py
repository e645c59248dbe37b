"""The run folder's disk: is it the same on all nodes, large enough and fast enough?"""

import os
import shutil
import time
from pathlib import Path

from launch.doctor.findings import Finding, judged

BYTES_PER_PARAMETER = 16
"""Weight, two moments and an average, in fp32."""
WRITE_BYTES = 1 << 28
LONG_SAVE_S = 60.0


def check_space(folder: Path, *, num_parameters: int, kept: int) -> Finding:
    """Compare free space with the checkpoints that a run keeps, and one that is being written."""
    checkpoint = BYTES_PER_PARAMETER * num_parameters
    needed, free = checkpoint * (kept + 1), shutil.disk_usage(folder).free
    return judged(
        "disk space",
        f"{free / 2**30:.1f} GiB free, {kept} + 1 checkpoints of {checkpoint / 2**30:.2f} GiB take "
        f"{needed / 2**30:.1f} GiB",
        fail=free < needed,
        warn=free < 2 * needed,
        advice="free space, take another --run.folder, or keep fewer (--run.keep-last, --run.keep-every-steps)",
    )


def check_write_speed(folder: Path, *, num_parameters: int, num_bytes: int = WRITE_BYTES) -> Finding:
    """Write and sync a file, and say how long a checkpoint takes."""
    path = folder / f".doctor.{os.getpid()}"
    block = os.urandom(1 << 24)
    start = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(max(1, num_bytes // len(block))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - start
        written = path.stat().st_size
    finally:
        path.unlink(missing_ok=True)
    per_s = written / seconds
    save_s = BYTES_PER_PARAMETER * num_parameters / per_s
    return judged(
        "write speed",
        f"{per_s / 2**20:.0f} MiB/s from one node, a checkpoint takes {save_s:.1f} s",
        warn=save_s > LONG_SAVE_S,
        advice="save less often (--run.save-every-steps), and give the scheduler's warning (--cluster.warning-s) the "
        "time",
    )


def leave_mark(folder: Path, *, token: str, rank: int) -> None:
    """Leave a file for the other nodes to find."""
    _mark(folder, token, rank).write_text(token)


def check_shared(folder: Path, *, token: str, world_size: int, wait_s: float = 10.0) -> list[int]:
    """List the ranks whose files cannot be seen here; network file systems get some time to show them."""
    deadline = time.monotonic() + wait_s
    while True:
        absent = [rank for rank in range(world_size) if not _mark(folder, token, rank).exists()]
        if not absent or time.monotonic() > deadline:
            return absent
        list(folder.iterdir())  # makes NFS look again
        time.sleep(0.2)


def remove_mark(folder: Path, *, token: str, rank: int) -> None:
    """Take this process's file away."""
    _mark(folder, token, rank).unlink(missing_ok=True)


def _mark(folder: Path, token: str, rank: int) -> Path:
    return folder / f".doctor.{token}.{rank}"
