"""The log of accuracy, mIoU or average precision while a run trains, and the best weights.

    runs/x/
    ├── evaluations.jsonl                one line per evaluation and weights (raw, ema); once accuracy.jsonl
    ├── best/raw-step-000000150/         best weights so far (finetune/network/weights.py)
    └── best/raw-step-000000150.json     all scores of them

Restarted from an older checkpoint, a run forgets what it measured after it. So the best weights up to each checkpoint
on disk are kept, not only the best of all.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from engine.documents import json_lines, read_json
from engine.errors import UserError
from engine.run.durable import write_durably
from finetune.network.weights import best_folder, is_whole, scores_file

logger = logging.getLogger(__name__)

FILE_NAME, OLD_FILE_NAME = "evaluations.jsonl", "accuracy.jsonl"
WEIGHTS = ("raw", "ema")
CHECKPOINTS_COVERED = 4
"""Newest checkpoints that a run may restart from with its best weights known."""


class EvaluationLog:
    """The lines of ``evaluations.jsonl`` and the folders under ``best/``; only the main process has one.

    Args:
        folder: the run folder.
        step: steps done so far; lines past them are forgotten.
        figure: name of the figure that makes weights the best, such as top1, miou or mask_AP; higher is better.
    """

    def __init__(self, folder: Path, *, step: int, figure: str) -> None:
        self._figure, self._folder = figure, folder
        self._file = folder / FILE_NAME
        old = folder / OLD_FILE_NAME
        if old.exists() and not self._file.exists():  # of a run that an earlier version began
            old.rename(self._file)
        self.lines = [line for line in _read_lines(self._file) if line["step"] <= step]
        if self._file.exists():
            self._write()
        for weights in WEIGHTS:
            self._drop_unfinished(weights)
            self._drop_overtaken(weights)

    def add(self, *, step: int, weights: str, figures: dict[str, float | None]) -> bool:
        """Write one line; return whether these are the best weights of their kind so far (the first, if equal).

        Those of a step that is measured again are other weights.
        """
        self.lines = [line for line in self.lines if (line["step"], line["weights"]) != (step, weights)]
        self.lines.append({"step": step, "weights": weights, **figures})
        self._write()
        return self.best_step(weights) == step

    def best_step(self, weights: str, *, until: int | None = None) -> int | None:
        """Find the step of the best figure of one kind of weights, of those measured until a step."""
        ranks = [
            (-_or_least(line.get(self._figure)), line["step"])
            for line in self.lines
            if line["weights"] == weights and (until is None or line["step"] <= until)
        ]
        return min(ranks)[1] if ranks else None

    def keep(self, weights: str, step: int, *, result: dict[str, Any]) -> None:
        """Write the scores beside the best weights, whose folder is written already, and drop those overtaken."""
        path = scores_file(best_folder(self._folder, weights, step))
        write_durably(path, json.dumps(result).encode())
        self._drop_overtaken(weights)

    def best_result(self, weights: str) -> dict[str, Any] | None:
        """Read the scores of the best weights of one kind, if they are still there."""
        step = self.best_step(weights)
        if step is None:
            return None
        path = scores_file(best_folder(self._folder, weights, step))
        if not path.is_file():
            logger.warning("%s is missing: the best %s weights are not listed", path, weights)
            return None
        try:
            return read_json(path)
        except UserError as error:
            logger.warning("%s: the best %s weights are not listed", error, weights)
            return None

    def _write(self) -> None:
        write_durably(self._file, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def _drop_unfinished(self, weights: str) -> None:
        """Delete the folders that a kill left without their scores."""
        for folder in (self._folder / "best").glob(f"{weights}-step-*"):
            if folder.is_dir() and not is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _drop_overtaken(self, weights: str) -> None:
        """Delete weights that are the best up to no checkpoint on disk."""
        steps = {self.best_step(weights, until=until) for until in (None, *self._checkpoint_steps())}
        for scores in (self._folder / "best").glob(f"{weights}-step-*.json"):
            if int(scores.stem.rpartition("-")[2]) not in steps:
                shutil.rmtree(scores.with_suffix(""), ignore_errors=True)
                scores.unlink()

    def _checkpoint_steps(self) -> list[int]:
        matches = [re.match(r"step-(\d+)", path.name) for path in (self._folder / "checkpoints").glob("step-*")]
        return sorted(int(match[1]) for match in matches if match)[-CHECKPOINTS_COVERED:]


def _or_least(figure: float | None) -> float:
    """A figure, or less than any where there was nothing to measure."""
    return -1.0 if figure is None else figure


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """List the lines that a kill or a damaged disk left whole."""
    lines = json_lines(path.read_bytes()) if path.exists() else []
    return [line for line in lines if isinstance(line.get("step"), int) and "weights" in line]
