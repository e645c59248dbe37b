"""After a loss or a gradient that is not finite a run goes back, finds the micro-batch, and leaves it out.

Nothing looks for it while all is well: a report or a checkpoint sees that a sum is not finite, and the run goes back to
its last checkpoint. From there it repeats its steps, and looks at every module and gradient in those that are in doubt.
The step that goes wrong is then known before it changes the weights: records are written
(``engine/faults/non_finite_record.py``), the run goes back once more, and from then on the micro-batch has weight zero
in its step's mean. A step is a function of its number, its samples and what is left out of it, so a killed run comes to
the same weights.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from engine.checkpoint.slices import TensorSlice
from engine.checkpoint.store import CheckpointStore
from engine.distributed.engine import Engine
from engine.errors import UserError
from engine.faults.non_finite import Finding, NonFiniteSearch
from engine.faults.non_finite_record import NonFiniteRecord, recent_metrics, record_folder
from engine.run.folder import RunFolder
from engine.terms import MicroBatchKey

logger = logging.getLogger(__name__)

NO_SKIPS: frozenset[MicroBatchKey] = frozenset()
MOST_RECORDS = 2
"""Micro-batches of one step and process that are written down whole."""


@dataclass(frozen=True, kw_only=True)
class _Suspect:
    """A micro-batch of this process that was not finite."""

    key: MicroBatchKey
    finding: Finding
    batch: Mapping[str, Any]


@dataclass(kw_only=True)
class NonFiniteRecovery:
    """What was left out of a run so far, and the search for what to leave out next."""

    engine: Engine
    """The processes."""
    folder: RunFolder
    """The run's folder, for records."""
    shard_of: Callable[[int], str]
    """Names the shard of a sample id."""
    num_micro_batches: int
    """Micro-batches of a step, over all processes."""
    max_rewinds: int
    """Most times that a run may go back."""
    precision: str
    """`distributed.precision`, for the records."""
    skipped: frozenset[MicroBatchKey] = NO_SKIPS
    """(step, micro-batch) that have weight zero."""
    rewinds: int = 0
    """Times that the run went back to search."""
    _doubtful: range = field(default_factory=lambda: range(0))
    """Steps that are searched when they are repeated."""
    _search: NonFiniteSearch | None = None
    """The search in the step at hand, while one goes on."""
    _suspects: list[_Suspect] = field(default_factory=list[_Suspect])
    """This process's, of the step at hand."""
    _culprits: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """All processes' suspects, as lines of JSON values, until they are left out."""

    def state(self) -> dict[str, Any]:
        """Name what every checkpoint must hold."""
        return {"skipped": sorted(self.skipped), "rewinds": self.rewinds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint holds."""
        self.skipped = frozenset((step, number) for step, number in state.get("skipped", ()))
        self.rewinds = state.get("rewinds", 0)

    def skipped_in(self, step: int) -> list[int]:
        """List the numbers of the micro-batches that are left out of a step."""
        return sorted(number for skipped_step, number in self.skipped if skipped_step == step)

    def weight(self, key: MicroBatchKey) -> float:
        """Compute the factor on a micro-batch's loss that makes the step's mean one over those that count."""
        if not self.skipped:
            return 1.0
        counted = self.num_micro_batches - len(self.skipped_in(key[0]))
        return 0.0 if key in self.skipped else self.num_micro_batches / counted

    @property
    def searching(self) -> bool:
        """Whether steps are being repeated."""
        return bool(self._doubtful)

    @property
    def has_culprits(self) -> bool:
        """Whether the micro-batches to leave out are known."""
        return bool(self._culprits)

    def start_search(self, doubtful: range, *, loss: float, norm: float) -> None:
        """Look at the steps ``doubtful`` when they are repeated, after something in them was not finite.

        Raises:
            UserError: the run has gone back too often.
        """
        self.rewinds += 1
        symptom = f"loss {loss:.4g}, gradient norm {norm:.4g} in steps {doubtful.start} to {doubtful.stop - 1}"
        if self.rewinds > self.max_rewinds + 1:
            raise UserError(
                f"{symptom}, for the {self.rewinds}th time, more often than run.max-rewinds {self.max_rewinds} allows; "
                f"nothing of them was saved; {self._advice()}"
            )
        logger.warning("%s: going back to the last checkpoint to find the micro-batch", symptom)
        self._doubtful = doubtful

    def begin(self, step: int) -> bool:
        """Search this step if it is in doubt; return whether all doubtful steps were repeated and were finite."""
        if step in self._doubtful and self._search is None:
            self._search = NonFiniteSearch(self.engine.module).__enter__()
        elif self._doubtful and step >= self._doubtful.stop:
            logger.warning(
                "all was finite in steps %d to %d this time: a fault of the machine, or kernels that are not "
                "deterministic; going on",
                self._doubtful.start,
                self._doubtful.stop - 1,
            )
            self._end_search()
            return True
        return False

    def examine(self, key: MicroBatchKey, loss: Tensor, batch: Mapping[str, Any]) -> None:
        """Look at a micro-batch after its backward pass."""
        if self._search is None:
            return
        finding = self._search.take(loss)
        if finding is not None and key not in self.skipped:
            self._suspects.append(_Suspect(key=key, finding=finding, batch=batch))

    def conclude(self, step: int, *, weights: Callable[[], list[TensorSlice]], metadata: Mapping[str, Any]) -> None:
        """Join the processes' suspects of a step, before it changes the weights, and write records (collective)."""
        if self._search is None or not self.engine.any(bool(self._suspects)):
            return
        records = [self._record(suspect) for suspect in self._suspects]
        for record, suspect in list(zip(records, self._suspects, strict=True))[:MOST_RECORDS]:
            tensors = {name: x for name, x in suspect.batch.items() if isinstance(x, Tensor)}
            try:
                record.write(self.folder.path, tensors)
            except (OSError, SafetensorError) as error:  # a full disk costs the record and not the run
                logger.warning("no record of %s: %s", record, error)
        own = [{"micro_batch": record.micro_batch, "step": step, "description": str(record)} for record in records]
        self._culprits = sorted(self.engine.gather_lines(own), key=lambda line: line["micro_batch"])
        self._save_weights(step, weights(), metadata)
        self._end_search()

    def leave_out_culprits(self) -> None:
        """Give the micro-batches that were not finite the weight zero from now on.

        Raises:
            UserError: the weights and not the data are at fault, or the run has gone back too often.
        """
        culprits, self._culprits = self._culprits, []
        step = int(culprits[0]["step"])
        names = "; ".join(line["description"] for line in culprits[:MOST_RECORDS])
        records = record_folder(self.folder.path, step)
        if len(culprits) + len(self.skipped_in(step)) == self.num_micro_batches:
            raise UserError(
                f"every micro-batch of step {step} is not finite, so the weights have diverged and the data are not at "
                f"fault ({names}; records: {records}); nothing of them was saved; {self._advice()}"
            )
        if self.rewinds > self.max_rewinds:
            raise UserError(
                f"{names}; the run has gone back {self.rewinds - 1} times already, run.max-rewinds {self.max_rewinds} "
                f"allows no more (records: {records}, `python pretrain/main.py replay` repeats them); nothing of them "
                f"was saved; {self._advice()}"
            )
        self.skipped |= {(step, int(line["micro_batch"])) for line in culprits}
        logger.warning("left out from now on: %s; records: %s", names, records)

    def _advice(self) -> str:
        return (
            "start again to go on from the last checkpoint, with a lower optimizer.base-lr or optimizer.clip-grad-norm "
            "in a run that branches from it, and look at the data if it recurs"
        )

    def _end_search(self) -> None:
        if self._search is not None:
            self._search.__exit__(None, None, None)
        self._search, self._doubtful, self._suspects = None, range(0), []

    def _record(self, suspect: _Suspect) -> NonFiniteRecord:
        (step, micro_batch), finding = suspect.key, suspect.finding
        return NonFiniteRecord(
            step=step,
            micro_batch=micro_batch,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
            precision=self.precision,
            loss=finding.loss if math.isfinite(finding.loss) else str(finding.loss),
            first_module=finding.module,
            first_module_type=finding.module_type,
            first_parameter=finding.parameter,
            samples=self._samples(suspect.batch),
            recent_metrics=recent_metrics(self.folder.metrics),
        )

    def _samples(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        ids: list[int] = batch["ids"].flatten().tolist() if "ids" in batch else []
        keys: Sequence[str | None] = batch.get("keys", ())
        if len(keys) != len(ids):
            keys = [None] * len(ids)
        return [{"id": i, "key": key, "shard": self.shard_of(i)} for i, key in zip(ids, keys, strict=True)]

    def _save_weights(self, step: int, slices: list[TensorSlice], metadata: Mapping[str, Any]) -> None:
        """Write the weights that the step met; a disk that is full costs the record its weights and not the run."""
        folder = record_folder(self.folder.path, step) / "weights"
        store = CheckpointStore(folder, rank=self.engine.rank, world_size=self.engine.world_size)
        self.engine.barrier()  # process 0 has cleared what an earlier run left half written
        try:
            store.save(step, [s for s in slices if s.kind in ("weight", "buffer")], {"step": step, **metadata})
            store.wait()
        except UserError as error:
            logger.warning("the weights of step %d are not in its record: %s", step, error)
