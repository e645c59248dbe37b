"""Reads what a fine-tuning run measured."""

import json
from pathlib import Path


def top1(run: Path) -> float:
    """The top-1 accuracy, in [0, 1], of a run's last weights, or of its kNN."""
    results = json.loads((run / "evaluation.json").read_text())["results"]
    named = {result["name"]: result["top1"] for result in results}
    return named["last raw"] if "last raw" in named else results[0]["top1"]
