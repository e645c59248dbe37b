"""The file of results that a run, or a measurement of one, leaves: ``evaluation.json`` or ``eval_only.json``.

classes        class names
results        one entry per set of weights: name ("last raw", "best ema", "knn", ...), step, and the task's figures
"""

import json
from pathlib import Path
from typing import Any

from engine.run.durable import write_durably

FILE_NAME = "evaluation.json"
MEASURED_NAME = "eval_only.json"


def write_results(
    folder: Path, results: list[dict[str, Any]], *, classes: tuple[str, ...] | None, name: str = FILE_NAME
) -> Path:
    """Write the results into ``folder`` beside their place and rename them; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    write_durably(path, json.dumps({"classes": classes, "results": results}).encode())
    return path
