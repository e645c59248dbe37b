"""What a writer has finished, so that it goes on after a kill without writing those shards again.

    out/
      plan.json        what was asked for: written first, kept; another plan is refused in this folder
      journal.jsonl    one line for each finished shard; removed once the manifest is written
      writing.lock     locked by the one process that writes; removed with the journal

A line is appended and synced after its shard lies under its final name. What is in the folder and not in the journal
was not finished, and is removed when the writer starts again.
"""

import dataclasses
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.config import DataConfig
from data.shards.manifest import MANIFEST_NAME, ShardInfo
from engine.documents import DocumentError, from_tree, parse_object
from engine.errors import UserError, at_path
from engine.run.durable import write_durably

logger = logging.getLogger(__name__)

JOURNAL_NAME, PLAN_NAME, LEDGER_NAME, LOCK_NAME = "journal.jsonl", "plan.json", "bad.jsonl", "writing.lock"
SOURCES_SUFFIX = ".sources.jsonl"
FINAL_NAMES = r"shard-\d{6,}\.(tar|idx|sources\.jsonl)|bad\.jsonl|manifest\.json|plan\.json|journal\.jsonl"
# What a killed writer may leave: its files, and those that it was writing beside their places. The manifest is not
# among them: with it the folder is complete, and nothing in it is ever removed.
OUR_FILES = re.compile(rf"(?!manifest\.json$)({FINAL_NAMES})(\.partial)?|\.({FINAL_NAMES})\.\d+|writing\.lock")

Plan = Mapping[str, str | int | float | bool | None]

DEFAULTS_CHANGED = {"max_pixels": (178_956_970, DataConfig.max_pixels)}
"""Defaults of earlier versions, and what they are now: where neither was chosen, plans are the same."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that is no image we decode."""

    source: str
    """Where it lies."""
    reason: str
    """Why it was left out."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A line of the journal."""

    shard: ShardInfo
    """A finished shard."""
    rejected: tuple[Rejected, ...]
    """What was left out since the one before."""
    position: int
    """How many of the source's samples were taken until its end."""

    def as_line(self) -> bytes:
        """Write it down."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


@dataclass(kw_only=True)
class Journal:
    """The finished part of a folder that is being written; holds the folder's lock until it is closed."""

    out: Path
    """The folder."""
    lock: int
    """Descriptor of its lock."""
    shards: list[ShardInfo] = field(default_factory=list[ShardInfo])
    """Finished shards."""
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    """What was left out before the end of the last of them."""
    position: int = 0
    """How many of the source's samples they and what was left out took."""

    def __post_init__(self) -> None:
        finished = {name for shard in self.shards for name in (shard.name, shard.index, sources_name(shard.name))}
        for path in self.out.iterdir():
            is_ours = OUR_FILES.fullmatch(path.name) is not None
            if is_ours and path.name not in {JOURNAL_NAME, PLAN_NAME, LOCK_NAME, *finished}:
                path.unlink()
        self._file = (self.out / JOURNAL_NAME).open("ab")

    def record(self, shard: ShardInfo, *, rejected: Sequence[Rejected], position: int) -> None:
        """Note a finished shard, and all that was left out so far."""
        entry = _Entry(shard=shard, rejected=tuple(rejected[len(self.rejected) :]), position=position)
        with at_path(self.out / JOURNAL_NAME):
            self._file.write(entry.as_line())
            self._file.flush()
            os.fsync(self._file.fileno())
        self.shards.append(shard)
        self.rejected, self.position = list(rejected), position

    def close(self) -> None:
        """Let go of the folder."""
        self._file.close()
        os.close(self.lock)

    def remove(self) -> None:
        """Delete what only a folder that is not complete needs."""
        for name in (JOURNAL_NAME, LOCK_NAME):
            (self.out / name).unlink()


def start_journal(out: Path) -> Journal:
    """Make the folder, or clear what a killed writer left in it.

    Raises:
        UserError: it holds shards or something else, or another process is writing to it.
    """
    lock = _lock_empty(out)
    for name in (JOURNAL_NAME, PLAN_NAME):
        (out / name).unlink(missing_ok=True)
    return Journal(out=out, lock=lock)


def resume_journal(out: Path, *, plan: Plan) -> Journal:
    """Open the journal of a folder that was begun with the same plan, or begin it.

    Raises:
        UserError: as `start_journal`, or the folder was begun with another plan; both values are named.
    """
    check_folder(out, plan=plan)
    lock = _lock_empty(out)
    # A journal without its plan cannot be trusted: nothing says from which list of samples its shards were written.
    if not (out / PLAN_NAME).is_file():
        (out / JOURNAL_NAME).unlink(missing_ok=True)
    write_durably(out / PLAN_NAME, (json.dumps(plan, indent=1) + "\n").encode())
    # Written anew up to the last sound line, since the next one is appended and must not follow half of another.
    lines = list(_sound_lines(out))
    write_durably(out / JOURNAL_NAME, b"".join(map(_Entry.as_line, lines)))
    return Journal(
        out=out,
        lock=lock,
        shards=[line.shard for line in lines],
        rejected=[item for line in lines for item in line.rejected],
        position=lines[-1].position if lines else 0,
    )


def check_folder(out: Path, *, plan: Plan) -> bool:
    """Tell whether a folder is already complete as planned; refuse it where the plan cannot be carried out there.

    Raises:
        UserError: it holds something else, or was begun with another plan; both values are named.
    """
    plan_path, journal = out / PLAN_NAME, out / JOURNAL_NAME
    complete = (out / MANIFEST_NAME).exists()
    if complete and not plan_path.is_file():
        raise UserError(f"{out} already holds shards; delete it or choose another --out")
    # While no shard is finished another plan loses nothing, and may take the folder over.
    if complete or (plan_path.is_file() and journal.is_file() and journal.stat().st_size > 0):
        _compare_plans(plan_path, plan=plan)
    elif out.is_dir():
        _refuse_strangers(out)
    return complete


def sources_name(shard: str) -> str:
    """Name the file that lists where the samples of a shard come from."""
    return Path(shard).with_suffix(SOURCES_SUFFIX).name


def write_ledger(out: Path, *, rejected: Iterable[Rejected]) -> None:
    """List what was left out; write nothing where nothing was."""
    lines = [json.dumps({"source": item.source, "reason": item.reason}) for item in rejected]
    if lines:
        write_durably(out / LEDGER_NAME, "".join(line + "\n" for line in lines).encode())


def _compare_plans(path: Path, *, plan: Plan) -> None:
    out = path.parent
    try:
        earlier = parse_object(path.read_bytes())
    except DocumentError as error:
        raise UserError(f"{path} cannot be read ({error}); delete {out} or choose another --out") from None
    values = {name: (earlier.get(name), plan.get(name)) for name in {**earlier, **plan}}
    differing = [name for name, (old, new) in values.items() if old != new and DEFAULTS_CHANGED.get(name) != (old, new)]
    if differing:
        name = differing[0]
        raise UserError(
            f"{out} was begun with {_option(name)} {earlier.get(name)!r}, now it is {plan.get(name)!r}: give the same "
            f"to go on, delete {out} to start over, or choose another --out"
        )


def _option(name: str) -> str:
    return name if " " in name else f"--{name.replace('_', '-')}"


def _sound_lines(out: Path) -> Iterator[_Entry]:
    """Yield the journal's lines up to the first that is torn, or whose shard is not there."""
    path = out / JOURNAL_NAME
    # The last piece is empty, or a line that a kill cut off: it counts as never written.
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        try:
            entry = from_tree(_Entry, parse_object(line))
        except DocumentError:
            logger.warning("%s: the journal ends in a torn line; what follows is written again", out)
            return
        # Its size is enough: a shard is renamed only after it was synced, and its index after it.
        tar, index = out / entry.shard.name, out / entry.shard.index
        if not (tar.is_file() and index.is_file() and tar.stat().st_size == entry.shard.size_bytes):
            logger.warning("%s is not as it was written; it and what follows is written again", tar)
            return
        yield entry


def _lock_empty(out: Path) -> int:
    """Make the folder and lock it, unless it holds what no killed writer can have left."""
    out.mkdir(parents=True, exist_ok=True)
    _refuse_finished(out)
    _refuse_strangers(out)
    descriptor = _lock(out)
    try:
        _refuse_finished(out)  # by a writer that held the lock until now
    except UserError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_finished(out: Path) -> None:
    if (out / MANIFEST_NAME).exists():
        raise UserError(f"{out} already holds shards; delete it or choose another --out")


def _refuse_strangers(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir())
    # Other writers name their shards as ours does: only beside a plan, a journal or a lock they are ours to replace.
    begun = {PLAN_NAME, JOURNAL_NAME, LOCK_NAME} & set(names)
    strangers = [name for name in names if not begun or not OUR_FILES.fullmatch(name)]
    if strangers:
        raise UserError(f"{out} is not empty (it holds {', '.join(strangers[:3])}); choose another --out")


def _lock(out: Path) -> int:
    """Lock the folder for this process; a killed process's lock is gone with it."""
    descriptor = os.open(out / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, forked children do not hold it
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another process is writing to {out}; wait for it or choose another --out") from None
    except OSError as error:  # a file system without locks
        logger.warning("%s cannot be locked (%s): see that only one process writes there", out, error)
    return descriptor
