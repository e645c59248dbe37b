"""What sources hand to the writer: a sample's files, or why there is none."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NewSample:
    """One sample on its way into a shard."""

    source: str
    """Where it comes from, for the ledger."""
    members: dict[str, bytes]
    """Content by extension; the first is the image."""
    label: int | None = None
    """Class number, written as `.cls`."""
    key: str | None = None
    """Its name in the shard; None: its number."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that is no image we decode."""

    source: str
    """Where it lies."""
    reason: str
    """Why it was left out."""
