"""Whole remote files in a local folder, which any number of processes share.

    folder/
      lock                       held while room is made: what is there, what goes, what may be written
      <sha256>.tar, .idx         complete files, named by content; the time of modification is that of the last use
      <sha256>.tar.lock          held by the one process that fetches the file; removed afterwards
      <sha256>.tar.*.partial     being written; its writer holds a lock on it, so that one without is a dead one's rest

All locks are `flock`s, which the kernel lets go when a process ends, however it ends. A reader holds a shared lock on
the file that it reads, and only files that nobody holds are evicted: so the limit holds on the disk, too, where an
unlinked file would live on until it is closed. Locks may reach the processes of one node only: nodes that share a
network folder share files (their names are unique until renamed, so nothing is mixed up), but may fetch one twice.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.remote.config import CacheConfig
from data.remote.download import GaveUpError, download
from engine.errors import NO_SPACE, PassingError, UserError

logger = logging.getLogger(__name__)

POLL_S = 0.05
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# Nothing else in the folder is ever counted or removed.
_OURS = re.compile(r"[0-9a-f]{64}\.(tar|idx)(\.(?P<host>.+)-\d+-[0-9a-f]+\.partial)?")


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """A file that can be fetched, named by what is in it."""

    location: str
    """Where it comes from: a URL or a local path."""
    sha256: str
    """Digest of its content."""
    suffix: str
    """`.tar` or `.idx`."""
    size_bytes: int | None = None
    """Its size, where it is known."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise UserError(f"{self.location}: expected a sha256 of 64 hexadecimal digits, got {self.sha256!r}")

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return self.sha256 + self.suffix


class ShardCache:
    """Fetches files, keeps them, and evicts those that were used least recently. Pickles; holds nothing open."""

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        try:
            self.folder = config.folder.expanduser().absolute()
        except RuntimeError as error:  # ~somebody, who is not known here
            raise UserError(f"data.cache.folder {config.folder}: {error}") from None
        self.fetched_bytes = 0
        """Bytes that this process has downloaded."""
        self.wait_s = 0.0
        """Seconds that this process has waited for downloads, its own and others'."""

    @contextlib.contextmanager
    def open(self, file: CachedFile) -> Iterator[int]:
        """Fetch ``file`` if it is not there and yield a descriptor for reading; it is not evicted meanwhile.

        Raises:
            OSError: it could not be fetched in time.
            UserError: it cannot be fetched, or the disk or the cache is too small for it.
        """
        # In a loop, since what was fetched may be evicted before it is opened: by another process that needs room.
        while (descriptor := self._open_complete(file)) is None:
            start = time.monotonic()
            self._fetch(file, wait_s=self.config.give_up_s)
            self.wait_s += time.monotonic() - start
        try:
            yield descriptor
        finally:
            _release(descriptor)

    def prefetch(self, file: CachedFile) -> bool:
        """Fetch ``file`` unless it is there; return False where another process is at it. Raises like `open`."""
        descriptor = self._open_complete(file)
        if descriptor is not None:
            _release(descriptor)
            return True
        try:
            self._fetch(file, wait_s=0)
        except HeldByAnotherError:
            return False
        return True

    def path(self, file: CachedFile) -> Path:
        """Name the place where ``file`` lies, or would lie."""
        return self.folder / file.name

    def _open_complete(self, file: CachedFile) -> int | None:
        try:
            descriptor = os.open(self.path(file), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        self._share(descriptor, file)
        state = os.fstat(descriptor)
        damaged = file.size_bytes is not None and state.st_size != file.size_bytes
        if damaged:
            self.path(file).unlink(missing_ok=True)
        if damaged or not state.st_nlink:  # no link: evicted between open and lock
            _release(descriptor)
            return None
        with contextlib.suppress(PermissionError):  # another user's file: it keeps its age
            os.utime(descriptor)
        return descriptor

    def _share(self, descriptor: int, file: CachedFile) -> None:
        """Hold a complete file together with its other readers; whoever holds it alone does so for a moment only."""
        deadline = time.monotonic() + self.config.give_up_s
        while not _lock(descriptor, fcntl.LOCK_SH):
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise HeldByAnotherError(f"another process of this node holds {self.path(file)}")
            time.sleep(POLL_S)

    def _fetch(self, file: CachedFile, *, wait_s: float) -> None:
        """Download ``file``, or wait until another process has."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache.folder {self.folder} cannot be made: {error.strerror}") from error
        lock = self.folder / f"{file.name}.lock"
        with self._disk_errors(file), _held(lock, wait_s=wait_s, what=file.location):
            if not self.path(file).exists():
                self._download(file)

    def _download(self, file: CachedFile) -> None:
        partial, descriptor = self._reserve(file)
        try:
            if file.size_bytes:  # outside of the lock: some file systems write zeros for it
                _allocate(descriptor, file.size_bytes)
            with open(descriptor, "r+b", closefd=False) as output:
                done = download(
                    file.location, output, config=self.config, size_bytes=file.size_bytes, sha256=file.sha256
                )
            # Synced before it gets its name, or a power cut could leave a whole name with half of the bytes.
            os.fsync(descriptor)
            partial.rename(self.path(file))
            self.fetched_bytes += done
        finally:
            _drop(partial, descriptor)

    def _reserve(self, file: CachedFile) -> tuple[Path, int]:
        """Make room for ``file`` and give that room to its partial, which the descriptor locks."""
        needed, deadline = file.size_bytes or 0, time.monotonic() + self.config.give_up_s
        # Where all that could go is being read, waiting helps: readers hold a shard for one read only.
        while needed <= self.config.limit_bytes and time.monotonic() < deadline:
            with _held(self.folder / "lock", wait_s=self.config.give_up_s, what="the cache", keep=True):
                if self._make_room(needed):
                    mark = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
                    partial = self.folder / f"{file.name}.{mark}.partial"
                    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    try:  # at its full size at once: whoever makes room next must count it
                        os.ftruncate(descriptor, needed)
                    except OSError:
                        _drop(partial, descriptor)
                        raise
                    return partial, descriptor
            time.sleep(POLL_S)
        raise UserError(
            f"{file.location} needs {_mib(needed)} in the cache {self.folder}, which is limited to "
            f"{_mib(self.config.limit_bytes)}{', all in use' if needed <= self.config.limit_bytes else ''}; "
            "raise data.cache.gib"
        )

    def _make_room(self, needed: int) -> bool:
        """Remove what dead writers left and, as far as it takes, what was used least recently."""
        files: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            ours, path = _OURS.fullmatch(entry.name), Path(entry.path)
            if ours is None:
                continue
            with contextlib.suppress(FileNotFoundError):  # renamed since the folder was listed
                state = entry.stat()
                if ours["host"] is None or not self._is_dead(path, host=ours["host"], last_write_s=state.st_mtime):
                    files.append((state.st_mtime, state.st_size, path))
        excess = sum(size for _, size, _ in files) + needed - self.config.limit_bytes
        for _, size, path in sorted(files):  # by the time of modification, which is that of the last use
            if excess <= 0:
                break
            if path.suffix != ".partial" and _remove_unless_held(path):
                logger.debug("evicted %s", path)
                excess -= size
        return excess <= 0

    def _is_dead(self, partial: Path, *, host: str, last_write_s: float) -> bool:
        """Remove what a dead writer left, if it is dead; of other nodes one may see no locks, but the last write."""
        if host != socket.gethostname() and time.time() - last_write_s < self.config.give_up_s:
            return False
        return _remove_unless_held(partial)

    @contextlib.contextmanager
    def _disk_errors(self, file: CachedFile) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise PassingError(
                f"no space for {file.location} in the cache {self.folder}: {_mib(file.size_bytes or 0)} needed, "
                f"{_mib(shutil.disk_usage(self.folder).free)} free on its disk ({error.strerror}); free some, lower "
                "data.cache.gib, or set data.cache.folder to another disk"
            ) from error


class HeldByAnotherError(GaveUpError):
    """A lock that another process holds."""


@contextlib.contextmanager
def _held(path: Path, *, wait_s: float, what: str, keep: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, alone on this node; it is removed afterwards, unless it is to be kept."""
    deadline = time.monotonic() + wait_s
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise HeldByAnotherError(
                f"another process of this node has been at {what} for {wait_s:.0f} s without an end; gave up after "
                f"that time (data.cache.give-up-s is the limit, {path} the lock): see whether the server answers and "
                "the disk is well"
            )
        time.sleep(POLL_S)
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        _release(descriptor)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if _lock(descriptor, fcntl.LOCK_EX) and os.fstat(descriptor).st_nlink:  # no link: its last holder removed it
        return descriptor
    _release(descriptor)
    return None


def _remove_unless_held(path: Path) -> bool:
    """Remove a file that nobody reads or writes; tell whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS gives a lock of one's own only to who may write
    except FileNotFoundError:
        return True
    except PermissionError:  # another user's: theirs to remove
        return False
    is_free = _lock(descriptor, fcntl.LOCK_EX)
    if is_free:
        path.unlink(missing_ok=True)
    _release(descriptor)
    return is_free


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        place = Path(f"/proc/self/fd/{descriptor}").readlink().parent
        raise UserError(
            f"the file system of data.cache.folder {place} has no locks ({error.strerror}): set data.cache.folder to a "
            "disk of the node"
        ) from error
    return True


def _release(descriptor: int) -> None:
    """Unlock, also for a child that was forked meanwhile and holds the same lock, and close."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _drop(partial: Path, descriptor: int) -> None:
    """Remove a partial, unless it was renamed, and let it go."""
    partial.unlink(missing_ok=True)
    _release(descriptor)


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Take the room on the disk now, so that a full one is found before the download."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
