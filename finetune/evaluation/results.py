"""What a run found: ``evaluation.json`` and the table on the terminal.

evaluation.json
  classes        class names
  results        one entry per set of weights: name ("last raw", "best ema", "knn", ...), step, top1, top5, loss, ...
"""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from engine.run.durable import write_durably

FILE_NAME = "evaluation.json"
EVAL_ONLY_FILE_NAME = "eval_only.json"


def write_results(
    folder: Path, results: list[dict[str, Any]], *, classes: tuple[str, ...] | None, name: str = FILE_NAME
) -> Path:
    """Write the results into ``folder`` beside their place and rename them; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    write_durably(path, json.dumps({"classes": classes, "results": results}).encode())
    return path


def results_table(results: list[dict[str, Any]], *, title: str) -> Table:
    """Return the results as a table, best guesses first, with the hardest and easiest class of each."""
    table = Table(title=title)
    for column in ("weights", "step", "top-1 %", "top-5 %", "loss", "images", "hardest class", "easiest class"):
        table.add_column(column, no_wrap=column not in ("weights", "hardest class", "easiest class"))
    for line in results:
        hardest, easiest = _extremes(line.get("per_class") or {})
        table.add_row(
            line["name"],
            _said(line.get("step"), "d"),
            _percent(line.get("top1")),
            _percent(line.get("top5")),
            _said(line.get("loss"), ".4f"),
            _said(line.get("num_images"), "d"),
            hardest,
            easiest,
        )
    return table


def _extremes(per_class: dict[str, float | None]) -> tuple[str, str]:
    known = sorted((share, name) for name, share in per_class.items() if share is not None)
    if not known:
        return "-", "-"
    (low, hardest), (high, easiest) = known[0], known[-1]
    return f"{hardest} {100 * low:.1f}", f"{easiest} {100 * high:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _said(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
