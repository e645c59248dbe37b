"""Whether the scheduler's warning reaches the training processes, which must save when it comes."""

import os
import shutil
import signal
import subprocess
import time
from types import FrameType

from launch.attempt.processes import SUPERVISOR
from launch.doctor.findings import Finding, judged

WAIT_S = 30.0


class Mailbox:
    """Notes when SIGUSR2 arrives, from now on."""

    def __init__(self) -> None:
        self.arrived_at: float | None = None
        signal.signal(signal.SIGUSR2, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.arrived_at = self.arrived_at or time.time()

    def wait(self, *, sent_at: float) -> float | None:
        """Wait for the signal; the seconds that it took, None if it did not come."""
        deadline = time.monotonic() + WAIT_S
        while self.arrived_at is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return None if self.arrived_at is None else self.arrived_at - sent_at


def send_warning(*, rank: int, local_rank: int) -> str:
    """Send the signal as the scheduler would, and name the sender. Called by every process: some of them send.

    In a container without Slurm's commands, and where there is no Slurm, it comes from each node's launcher.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is not None and shutil.which("scancel") is not None:
        if rank == 0:
            subprocess.run(["scancel", "--signal", "USR2", job], check=False, timeout=60)
        return "Slurm"
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        os.kill(os.getpid(), signal.SIGUSR2)
        return "this process itself"
    if local_rank == 0:
        os.kill(int(supervisor), signal.SIGUSR2)
    return "the launcher"


def check_delivery(seconds: list[float | None], *, sender: str) -> Finding:
    """Judge how long the signal took to each process."""
    missed = [rank for rank, value in enumerate(seconds) if value is None]
    slowest = max((value for value in seconds if value is not None), default=0.0)
    return judged(
        "warning signal",
        f"SIGUSR2 by {sender} reached {len(seconds) - len(missed)} of {len(seconds)} processes, the last after "
        f"{slowest:.1f} s",
        fail=bool(missed),
        advice=f"processes {', '.join(map(str, missed[:8]))} did not get it: jobs would be ended without saving; save "
        "more often (--run.save-every-steps) and ask who else handles signals on the nodes",
    )
