"""One shard, open for reading: a local tar through a descriptor that stays open, a remote one through the cache."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from data.remote.cache import CachedFile, ShardCache
from data.remote.locations import is_remote, join
from data.shards.index import Member, ShardIndex
from data.shards.manifest import ShardInfo
from data.shards.reading import ReadingCounters, advise, read_members
from engine.errors import UserError


class OpenShard:
    """The index of a shard, and its members' bytes."""

    def __init__(self, folder: Path | str, *, info: ShardInfo, cache: ShardCache) -> None:
        """Open the index and, where the tar is local, the tar.

        Raises:
            OSError: a remote index could not be fetched in time.
            UserError: a file is missing, or not what the manifest says.
        """
        self._info, self._cache = info, cache
        self._tar, index = cached_files(folder, info=info, local=cache.config.local)
        self.path = join(folder, info.name)
        if index is None:
            self.index = _local_index(Path(join(folder, info.index)), info=info)
        else:
            with cache.open(index):
                self.index = ShardIndex(cache.path(index))  # what is mapped outlives its eviction
        _check_index(self.index, join(folder, info.index), info=info)
        self._descriptor = _open_tar(Path(self.path), info=info) if self._tar is None else None

    def advise(self, members: Sequence[Member]) -> None:
        """Tell the kernel what will be read next; nothing where the tar is in the cache, on a disk of the node."""
        self._check(members)
        if self._descriptor is not None:
            advise(self._descriptor, members)

    def read(self, members: Sequence[Member], *, counters: ReadingCounters) -> list[bytes]:
        """Read the bytes of ``members``.

        Raises:
            OSError: the file system failed, or the shard could not be fetched in time.
            UserError: the shard is not what its index says, or cannot be fetched.
        """
        self._check(members)
        try:
            if self._descriptor is not None:
                return read_members(self._descriptor, members, counters=counters)
            assert self._tar is not None
            with self._cache.open(self._tar) as descriptor:  # held for this read alone: what is held is never evicted
                return read_members(descriptor, members, counters=counters)
        except EOFError:
            raise UserError(f"{self.path} ends inside a member; run `python data/main.py verify`") from None

    def confirm(self) -> None:
        """Read the whole tar and compare it with the manifest.

        Raises:
            UserError: it is not what it was when the manifest was made.
        """
        with contextlib.ExitStack() as stack:
            descriptor = self._descriptor
            if descriptor is None:
                assert self._tar is not None
                descriptor = stack.enter_context(self._cache.open(self._tar))
            with open(os.dup(descriptor), "rb") as file:  # noqa: PTH123 - a descriptor has no path
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != self._info.sha256:
            where = self.path if self._tar is None else f"{self.path} (its copy {self._cache.path(self._tar)})"
            raise UserError(
                f"{where} has changed since its manifest was made: sha256 {sha256[:12]}…, the manifest says "
                f"{self._info.sha256[:12]}…; copy it again, or run `python data/main.py index` if it was changed on "
                "purpose"
            )

    def _check(self, members: Sequence[Member]) -> None:
        if any(member.offset + member.size > self._info.size_bytes for member in members):
            raise UserError(f"the index of {self.path} points beyond its end; make it again with `index`")

    def close(self) -> None:
        """Close the tar."""
        if self._descriptor is not None:
            os.close(self._descriptor)


def cached_files(
    folder: Path | str, *, info: ShardInfo, local: bool = False
) -> tuple[CachedFile | None, CachedFile | None]:
    """Describe tar and index of a shard as files for the cache; None for what is read in place.

    ``local`` takes local tars through the cache, too.
    """
    tar, index = join(folder, info.name), join(folder, info.index)
    cached_tar = cached_index = None
    if is_remote(tar) or local:
        cached_tar = CachedFile(location=tar, sha256=info.sha256, suffix=".tar", size_bytes=info.size_bytes)
    if is_remote(index):
        cached_index = CachedFile(location=index, sha256=info.index_sha256, suffix=".idx")
    return cached_tar, cached_index


def _local_index(path: Path, *, info: ShardInfo) -> ShardIndex:
    if not path.is_file():
        raise UserError(
            f"the index {path} of shard {info.name} is missing; make it again with `python data/main.py index`"
        )
    return ShardIndex(path)


def _check_index(index: ShardIndex, location: str, *, info: ShardInfo) -> None:
    if len(index) != info.num_samples:
        raise UserError(
            f"{location} holds {len(index)} samples, the manifest says {info.num_samples}; run `index` again"
        )
    if index.claimed_bytes > info.size_bytes:  # as many records that point at the same bytes do
        raise UserError(
            f"{location} names members of {index.claimed_bytes:.3g} bytes in a tar of {info.size_bytes}; run `index` "
            "again"
        )


def _open_tar(path: Path, *, info: ShardInfo) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
    except FileNotFoundError:
        raise UserError(f"the shard {path} is missing; bring it back or make the manifest again") from None
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != info.size_bytes:
        os.close(descriptor)
        raise UserError(
            f"{path} has {size_bytes} bytes, the manifest says {info.size_bytes}: truncated or replaced; copy it "
            "again, or run `python data/main.py index` if it was changed on purpose"
        )
    return descriptor
