"""The micro-batches of one process in the order of its loop, which may go back and leave some of them out."""

from collections.abc import Collection, Iterator
from typing import Any, Protocol, runtime_checkable

from engine.errors import UserError
from engine.terms import MicroBatchKey


@runtime_checkable
class Restartable(Protocol):
    """An iterator over micro-batches that can begin again at any step (``data.loading.loader.training_batches``)."""

    def restart(self, *, first_step: int, skip: Collection[MicroBatchKey]) -> None:
        """Go on with ``first_step``, leaving out the micro-batches (step, number) of ``skip``."""
        ...


class MicroBatchFeed:
    """Hands out micro-batches by key; for one that is left out, another one to give it the weight zero.

    A process whose micro-batch is left out still takes part in the step's collectives, so it computes on something: the
    micro-batch before, or the next one where there is none, or in the last step one of an earlier step.
    """

    def __init__(self) -> None:
        self._restart_at: int | None = None
        self._skip: frozenset[MicroBatchKey] = frozenset()
        self._before: dict[str, Any] | None = None
        self._ahead: dict[str, Any] | None = None

    def restart(self, *, first_step: int, skip: Collection[MicroBatchKey]) -> None:
        """Let the next ``take`` begin at ``first_step``, without what is to skip."""
        self._restart_at, self._skip = first_step, frozenset(skip)
        self._before, self._ahead = None, None

    def take(self, batches: Iterator[dict[str, Any]], *, key: MicroBatchKey) -> dict[str, Any]:
        """Take the micro-batch ``key`` = (step, micro_batch); ``batches`` yields those to come, without skipped ones.

        The dict is the caller's to change. One in place of a skipped micro-batch holds ``skipped``: True.

        Raises:
            TypeError: something is to be done again or left out, and ``batches`` is no ``Restartable``.
        """
        if self._restart_at is not None:
            if not isinstance(batches, Restartable):
                raise TypeError(
                    f"{type(batches).__name__} cannot begin again: use data.loading.loader.training_batches as it is"
                )
            batches.restart(first_step=self._restart_at, skip=self._skip)
            self._restart_at = None
        if key not in self._skip:
            self._before, self._ahead = self._ahead or next(batches), None
            return dict(self._before)
        if self._before is None:
            self._ahead = self._ahead or next(batches, None)
        if self._before is None and self._ahead is None:
            self._before = self._earlier(batches, step=key[0])
        instead = self._before or self._ahead
        assert instead is not None
        substitute = {**instead, "bad": [], "skipped": True}
        substitute.pop("reading", None)
        return substitute

    def _earlier(self, batches: Iterator[dict[str, Any]], *, step: int) -> dict[str, Any]:
        """Find a micro-batch of the last step before ``step`` that has one; ``batches`` are at their end."""
        assert isinstance(batches, Restartable)
        for first_step in reversed(range(step)):
            batches.restart(first_step=first_step, skip=self._skip)
            batch = next(batches, None)
            if batch is not None:
                return batch
        raise UserError(f"every micro-batch of this process up to step {step} is left out")
