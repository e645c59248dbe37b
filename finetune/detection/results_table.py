"""The results of a detection run as a table for the terminal."""

from typing import Any

from rich.table import Table

COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP_small", "APm": "AP_medium", "APl": "AP_large"}
"""Headings, narrow enough for 80 characters, and the figures under them."""


def results_table(results: list[dict[str, Any]], *, title: str) -> Table:
    """Return a row for boxes and one for masks of each set of weights, in percent."""
    table = Table(title=f"{title}, in %", padding=(0, 0, 0, 1))
    for column in ("weights", "step", "of", *COLUMNS, "images"):
        table.add_column(column, no_wrap=True)
    for line in results:
        for kind in ("box", "mask"):
            if kind in line:
                figures = (_percent(line[kind].get(figure)) for figure in COLUMNS.values())
                table.add_row(line["name"], _said(line.get("step")), kind, *figures, _said(line.get("num_images")))
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _said(value: int | None) -> str:
    return "-" if value is None else str(value)
