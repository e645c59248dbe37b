"""One writer per run folder: a lock file with a heartbeat.

    lock.json     host, pid, job id, start time and a token; its modification time is the heartbeat
    lock.guard    empty; held with flock for the moment in which somebody looks at the lock and takes it

The heartbeat is compared with the file system's own clock, so hosts whose clocks differ agree on its age.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.documents import parse_json
from engine.errors import PassingError, UserError

logger = logging.getLogger(__name__)

LOCK = "lock.json"
HEARTBEAT_S = 30.0
STALE_S = 180.0


class RunLock:
    """The lock of one run folder, from ``acquire`` until ``release``.

    Raises:
        UserError: (``acquire``) another process holds it; the message names the holder.
    """

    def __init__(self, folder: Path, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._path = folder / LOCK
        self._guard = folder / "lock.guard"
        self._heartbeat_s = heartbeat_s
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self._lost = threading.Event()

    @property
    def lost(self) -> bool:
        """Whether another process has taken the lock while this one held it (it slept, or its disk hung, for long)."""
        return self._lost.is_set()

    def acquire(self) -> None:
        """Take the lock, also from a holder that is dead, and keep it fresh from a thread."""
        with _guarded(self._guard):
            holder = read_holder(self._path)
            if holder is not None:
                if is_alive(holder, heartbeat_age_s=self._age_s()):
                    raise PassingError(self._refusal(holder))
                logger.warning("%s was held by %s, which is gone: taken over", self._path.parent, describe(holder))
            beside = self._path.with_name(f".lock.{self._token}")
            beside.write_text(json.dumps(self._content()))
            beside.replace(self._path)
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        self._released.set()
        with contextlib.suppress(OSError), _guarded(self._guard):
            if self._is_ours():
                self._path.unlink()

    def remove_folder(self, own: Sequence[Path]) -> None:
        """Give the lock back and remove its folder, ``own`` files and empty folders first.

        What others put there stays, and the folder with it. Nobody else can take it before the end.
        """
        self._released.set()
        with contextlib.suppress(OSError, UserError), _guarded(self._guard):
            if not self._is_ours():
                return
            for path in own:
                with contextlib.suppress(OSError):  # it is gone, or something came into it
                    path.rmdir() if path.is_dir() else path.unlink()
            self._path.unlink()
            self._guard.unlink()
            self._path.parent.rmdir()

    def _content(self) -> dict[str, Any]:
        return {
            **_machine(),
            "pid": os.getpid(),
            "pid_started": _pid_started(os.getpid()),
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "job_restart": os.environ.get("SLURM_RESTART_COUNT"),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "heartbeat_s": self._heartbeat_s,
            "token": self._token,
        }

    def _refusal(self, holder: dict[str, Any]) -> str:
        return (
            f"run folder {self._path.parent} is in use by {describe(holder)}; wait until that run has ended, "
            f"stop it (touch {self._path.parent / 'STOP'}), or choose another --run.folder"
            + ("" if _same_machine(holder) else f" (it counts as gone {STALE_S:.0f} s after its last sign of life)")
        )

    def _age_s(self) -> float:
        """Seconds since the last heartbeat, by the clock of the file system."""
        probe = self._path.with_name(f".clock.{self._token}")
        probe.touch()
        try:
            return probe.stat().st_mtime - self._path.stat().st_mtime
        finally:
            probe.unlink()

    def _is_ours(self) -> bool:
        holder = read_holder(self._path)
        return holder is not None and holder.get("token") == self._token

    def _beat(self) -> None:
        while not self._released.wait(self._heartbeat_s):
            try:
                if not self._is_ours():
                    self._lost.set()
                    logger.error("the lock %s was taken by another process", self._path)
                    return
                os.utime(self._path)
            except OSError as error:
                logger.warning("no heartbeat in %s: %s", self._path, error)


def read_holder(path: Path) -> dict[str, Any] | None:
    """Read what the lock file says, None if there is none; an unreadable one is a holder without particulars."""
    try:
        holder = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except UserError:
        return {}
    return holder if isinstance(holder, dict) else {}


def find_holder(folder: Path) -> dict[str, Any] | None:
    """Find who runs in ``folder`` now, None if nobody does; looks only, and takes no lock."""
    path = folder / LOCK
    holder = read_holder(path)
    if holder is None:
        return None
    try:
        heartbeat_age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    return holder if is_alive(holder, heartbeat_age_s=heartbeat_age_s) else None


def is_alive(holder: dict[str, Any], *, heartbeat_age_s: float) -> bool:
    """Whether the holder still runs: on this machine by its process, elsewhere by its heartbeat."""
    if _same_machine(holder) and isinstance(holder.get("pid"), int):
        started = _pid_started(holder["pid"])
        return started is not None and started == holder.get("pid_started", started)
    return heartbeat_age_s < STALE_S and not _is_earlier_start_of_this_job(holder)


def _is_earlier_start_of_this_job(holder: dict[str, Any]) -> bool:
    """Whether Slurm has started the holder's job again, as this process: then what the job ran before is gone."""
    job, restart = (os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
    return job is not None and holder.get("job_id") == job and holder.get("job_restart") != restart


def describe(holder: dict[str, Any]) -> str:
    """Name a holder in words."""
    job = f", job {holder['job_id']}" if holder.get("job_id") else ""
    return (
        f"process {holder.get('pid', 'unknown')} on host {holder.get('host', 'unknown')}{job}, "
        f"started {holder.get('started', 'at an unknown time')}"
    )


def _same_machine(holder: dict[str, Any]) -> bool:
    return all(holder.get(key, value) == value for key, value in _machine().items()) and "host" in holder


def _machine() -> dict[str, Any]:
    """Say in which machine and which container a process number means something."""
    pid_namespace, boot = None, None
    with contextlib.suppress(OSError):
        pid_namespace = str(Path("/proc/self/ns/pid").readlink())
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "pid_namespace": pid_namespace}


def _pid_started(pid: int) -> str | None:
    """Make a mark that no later process with the same number shares; None if there is no such process."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # no /proc here
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


@contextlib.contextmanager
def _guarded(path: Path, *, timeout_s: float = 30.0) -> Iterator[None]:
    """Hold ``path`` with flock: looking at the lock and taking it is one act. The kernel frees it when we die."""
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PassingError(f"{path} has been held by another process for {timeout_s:.0f} s") from None
                time.sleep(0.01)
            except OSError as error:
                logger.warning("%s: this file system has no flock (%s)", path, error.strerror)
                break
        yield
