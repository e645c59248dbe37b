"""Training samples that do not decode: a file that names each once, and the limit past which a run stops.

    runs/x/bad_samples.jsonl    {"step", "micro_batch", "shard", "key", "reason", "id"} of each bad sample where it was
                                first met, in the order of steps; a resumed run forgets what lies past its checkpoint

Others took their places (``data/images/decode.py``), so what is trained on stays a function of the step. Process 0
writes down all processes' bad samples when they settle, at every report and checkpoint.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.distributed.engine import Engine
from engine.errors import UserError
from engine.run.durable import append, write_durably
from engine.run.folder import is_until
from engine.terms import MicroBatchKey

logger = logging.getLogger(__name__)

FILE_NAME = "bad_samples.jsonl"
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
    """Lists and counts the bad samples of all processes of a run.

    Args:
        folder: the run folder.
        engine: the processes.
        shard_of: names the shard of a sample id.
        max_share: the run stops when more than this share of its samples was replaced.
        steps_done: steps that count; what was listed past them is forgotten.
        total: samples that were replaced in them.
        unreported: those of them that are in no report yet.
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
        unreported: int = 0,
    ) -> None:
        self.total, self.unreported = total, unreported
        self._path, self._engine, self._shard_of, self._max_share = folder / FILE_NAME, engine, shard_of, max_share
        self._pending: list[BadSample] = []
        self._listed = self._read(steps_done) if engine.is_main else set[int]()

    def note(self, bad: Sequence[tuple[int, str, str]], *, key: MicroBatchKey) -> None:
        """Remember the (id, name, reason) of what was replaced in the micro-batch ``key`` = (step, micro_batch)."""
        step, micro_batch = key
        for number, name, reason in bad:
            shard = self._shard_of(number)
            self._pending.append(
                BadSample(step=step, micro_batch=micro_batch, shard=shard, key=name, reason=reason, id=number)
            )

    def forget(self, step: int) -> None:
        """Drop what was met in a step that is not done, and will be done again."""
        self._pending = [bad for bad in self._pending if bad.step < step]

    def settle(self, num_samples: int) -> int:
        """Write down what all processes met since the last time; return how many samples were replaced (collective).

        Raises:
            UserError: on all processes alike, more of the ``num_samples`` visited so far were bad than is allowed.
        """
        if not self._engine.any(bool(self._pending)):
            return 0
        lines = self._engine.gather_lines([dataclasses.asdict(bad) for bad in self._pending])
        samples = sorted((BadSample(**line) for line in lines), key=lambda bad: (bad.step, bad.micro_batch))
        self._pending = []
        self.total += len(samples)
        self.unreported += len(samples)
        if self._engine.is_main:
            self._list(samples)
        if self.total > self._max_share * max(num_samples, FEWEST_SAMPLES):
            raise UserError(
                f"{self.total} of the {num_samples} samples so far could not be decoded, more than data.max-bad-share "
                f"{self._max_share:g} allows; {self._path} names them: look at the shards with `python data/main.py "
                "verify`, then write them again without what is broken, or go on with a higher --data.max-bad-share"
            )
        return len(samples)

    def _read(self, steps_done: int) -> set[int]:
        """Cut off what lies past the checkpoint, or was cut short by a kill; return the ids that stay."""
        if not self._path.exists():
            return set()
        lines = self._path.read_bytes().splitlines(keepends=True)
        valid = [line for line in lines if is_until(line, steps_done - 1)]
        if len(valid) < len(lines):
            write_durably(self._path, b"".join(valid))
        return {json.loads(line)["id"] for line in valid}

    def _list(self, samples: Sequence[BadSample]) -> None:
        """Append those that are not in the file yet, and warn of the first few."""
        new: list[BadSample] = []
        for bad in samples:
            if bad.id not in self._listed:
                self._listed.add(bad.id)
                new.append(bad)
        append(self._path, "".join(json.dumps(dataclasses.asdict(bad)) + "\n" for bad in new))
        for bad in new[:MOST_WARNINGS]:
            logger.warning("%s of %s was replaced: %s", bad.key, bad.shard, bad.reason)
        if len(new) > MOST_WARNINGS:
            logger.warning("%d more were replaced: see %s", len(new) - MOST_WARNINGS, self._path)
