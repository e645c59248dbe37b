"""Where remote shards are kept, and how long to wait for them. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from engine.config import may_change
from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The cache of remote shards; none of it changes samples."""

    folder: Path = may_change(Path("~/.cache/green-pretrain"))
    """Folder for whole shards, best on a disk of the node; all processes of a node, and several runs, may share it."""
    gib: float = may_change(50.0)
    """Most GiB to keep there; the shards that were used least recently go first."""
    local: bool = may_change(False)
    """Also copy the shards of local folders there: for Lustre and NFS, where small random reads are slow."""
    prefetch_steps: int = may_change(200)
    """Steps ahead for which shards are fetched in the background; 0 fetches a shard when it is read."""
    give_up_s: float = may_change(600.0)
    """A file that could not be read for this long, in spite of repeated attempts, stops the run; in seconds."""
    timeout_s: float = may_change(30.0)
    """A server that is silent for this long has failed, and is tried again; in seconds."""

    def __post_init__(self) -> None:
        if self.gib <= 0 or self.give_up_s <= 0 or self.timeout_s <= 0:
            raise UserError(
                "data.cache.gib, data.cache.give-up-s and data.cache.timeout-s must be positive, "
                f"got {self.gib}, {self.give_up_s}, {self.timeout_s}"
            )
        if self.prefetch_steps < 0:
            raise UserError(f"data.cache.prefetch-steps must be at least 0, got {self.prefetch_steps}")

    @property
    def limit_bytes(self) -> int:
        """`gib` in bytes."""
        return round(self.gib * 2**30)
