"""A record of what every micro-batch was made of, for audits: ids, crops and other tensors, one JSON line each.

Written as ``samples-00000.jsonl``, one file per process, appended to over restarts. Steps that were done, lost and
done again appear twice, with the same content. A micro-batch that was left out since it was not finite has "skipped"
instead; before that line stand those of the steps up to where it was found.
"""

import json
import os
from pathlib import Path
from typing import Any, Self, TextIO

from engine.errors import UserError
from engine.terms import MicroBatchKey


class SampleLog:
    """Appends to one process's record, or does nothing where none is asked for."""

    def __init__(self, file: TextIO | None, *, names: tuple[str, ...]) -> None:
        self._file, self._names = file, names

    @classmethod
    def open(cls, folder: Path, *, rank: int, enabled: bool, names: tuple[str, ...]) -> Self:
        """Open the record of process ``rank`` in a run folder; ``names`` are the tensors of a batch to write down."""
        if not enabled:
            return cls(None, names=names)
        path = folder / f"samples-{rank:05d}.jsonl"
        cut_short = path.exists() and not _ends_whole(path)
        file = path.open("a", buffering=1)
        if cut_short:  # by a kill or a full disk: the next line must not join it
            file.write("\n")
        return cls(file, names=names)

    def note(self, step: int, micro_batch: int, batch: dict[str, Any]) -> None:
        """Write down one micro-batch."""
        if self._file is None:
            return
        key = {"step": step, "micro_batch": micro_batch}
        if batch.get("skipped"):
            self._file.write(json.dumps({**key, "skipped": True}) + "\n")
            return
        arrays = {name: batch[name].tolist() for name in self._names}
        self._file.write(json.dumps({**key, **arrays, "bad": batch["bad"]}) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_sample_logs(run_folder: Path) -> dict[MicroBatchKey, str]:
    """Read the line of each (step, micro_batch) that the processes of a run noted; of one left out, its last.

    Raises:
        UserError: one that was done twice was made of other samples the second time.
    """
    contents: dict[MicroBatchKey, str] = {}
    for path in sorted(run_folder.glob("samples-*.jsonl")):
        for text in path.read_text().splitlines():
            if not text.endswith("}"):
                continue  # cut off by a kill
            line = json.loads(text)
            key, content = (line["step"], line["micro_batch"]), json.dumps(line)
            if contents.setdefault(key, content) != content and not line.get("skipped"):
                raise UserError(
                    f"{path}: step {key[0]}, micro-batch {key[1]} was made of other samples the second time"
                )
            contents[key] = content
    return contents
