"""Training samples that do not decode: a ledger that names each once, and the limit past which a run stops.

    runs/x/bad_samples.jsonl    {"step", "micro_batch", "shard", "key", "reason", "id"} of each bad sample where it was first
                                met, in the order of steps; a resumed run forgets what lies past its checkpoint

Others took their places (``data/images/decode.py``), so what is trained on stays a function of the step. Process 0 writes what all
found when they settle, at every report and checkpoint.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.distributed.engine import Engine
from engine.errors import UserError
from engine.run.durable import write_durably
from engine.run.folder import is_until
from engine.terms import MicroBatchKey

logger = logging.getLogger(__name__)

LEDGER_NAME = "bad_samples.jsonl"
FEWEST_SAMPLES = 1000
"""The share of bad samples is taken of at least so many: of fewer it says little."""
MOST_WARNINGS = 5


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """One sample whose place another one took."""

    step: int
    """Of the micro-batch, from 0."""
    micro_batch: int
    """Number of the micro-batch in its step."""
    shard: str
    """Path of its shard."""
    key: str
    """Its name in the shard."""
    reason: str
    """Why it does not decode."""
    id: int
    """Global number of the sample."""


class BadSamples:
    """Gathers what the processes of a run find.

    Args:
        folder: the run folder.
        engine: the processes.
        shard_of: gives the shard of a sample id.
        max_share: the run stops when more than this share of its samples was replaced.
        steps_done: steps that count; what was listed past them is forgotten.
        total: samples that were replaced in them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine: Engine,
        shard_of: Callable[[int], str],
        max_share: float,
        steps_done: int,
        total: int,
    ) -> None:
        self.total = total
        self._path, self._engine, self._shard_of, self._max_share = folder / LEDGER_NAME, engine, shard_of, max_share
        self._found: list[BadSample] = []
        self._listed = self._read(steps_done) if engine.is_main else set[int]()

    def note(self, bad: Sequence[tuple[int, str, str]], *, key: MicroBatchKey) -> None:
        """Keep the (id, name, reason) of what was replaced in the micro-batch ``key`` = (step, micro_batch)."""
        for number, name, reason in bad:
            where = {"step": key[0], "micro_batch": key[1], "shard": self._shard_of(number)}
            self._found.append(BadSample(**where, key=name, reason=reason, id=number))

    def settle(self, num_samples: int) -> int:
        """Write down what all processes found since the last time; return how many places were taken (collective).

        Raises:
            UserError: on all processes alike, more of the ``num_samples`` visited so far were bad than is allowed.
        """
        if not self._engine.any(bool(self._found)):
            return 0
        lines = self._engine.gather_lines([dataclasses.asdict(bad) for bad in self._found])
        found = sorted((BadSample(**line) for line in lines), key=lambda bad: (bad.step, bad.micro_batch))
        self._found = []
        self.total += len(found)
        if self._engine.is_main:
            self._list(found)
        if self.total > self._max_share * max(num_samples, FEWEST_SAMPLES):
            raise UserError(
                f"{self.total} of the {num_samples} samples so far could not be decoded, more than data.max-bad-share "
                f"{self._max_share:g} allows; {self._path} names them: look at the shards with `python data/main.py verify`, "
                f"then write them again without what is broken, or go on with a higher --data.max-bad-share"
            )
        return len(found)

    def _read(self, steps_done: int) -> set[int]:
        """Cut off what lies past the checkpoint, or was cut short by a kill; return the ids that stay."""
        if not self._path.exists():
            return set()
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if is_until(line, steps_done - 1)]
        if len(kept) < len(lines):
            write_durably(self._path, b"".join(kept))
        return {json.loads(line)["id"] for line in kept}

    def _list(self, found: Sequence[BadSample]) -> None:
        new: list[BadSample] = []
        for bad in found:
            if bad.id not in self._listed:
                self._listed.add(bad.id)
                new.append(bad)
        with self._path.open("a") as file:
            file.writelines(json.dumps(dataclasses.asdict(bad)) + "\n" for bad in new)
        for bad in new[:MOST_WARNINGS]:
            logger.warning("%s of %s was replaced: %s", bad.key, bad.shard, bad.reason)
        if len(new) > MOST_WARNINGS:
            logger.warning("%d more were replaced: see %s", len(new) - MOST_WARNINGS, self._path)
