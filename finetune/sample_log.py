"""A record of what every micro-batch was made of, for audits: ids, labels and crops, one JSON line each.

Written as ``samples-00000.jsonl``, one file per process, appended to over restarts. Steps that were done, lost and done
again appear twice, with the same words.
"""

import json
from pathlib import Path
from typing import Any, Self, TextIO


class SampleLog:
    """Appends to one process's record, or does nothing where none is asked for."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    @classmethod
    def open(cls, folder: Path, *, rank: int, enabled: bool) -> Self:
        """Open the record of process ``rank`` in a run folder."""
        return cls((folder / f"samples-{rank:05d}.jsonl").open("a", buffering=1) if enabled else None)

    def note(self, step: int, micro_batch: int, batch: dict[str, Any]) -> None:
        """Write down one micro-batch."""
        if self._file is None:
            return
        arrays = {name: batch[name].tolist() for name in ("ids", "labels", "crops")}
        self._file.write(json.dumps({"step": step, "micro_batch": micro_batch, **arrays, "bad": batch["bad"]}) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
