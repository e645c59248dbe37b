"""The table of what segmentation runs found."""

from typing import Any

from rich.table import Table


def segment_table(results: list[dict[str, Any]], *, title: str) -> Table:
    """Return the results as a table, with the hardest and easiest class of each."""
    table = Table(title=title)
    for column in ("weights", "step", "mIoU %", "pixel accuracy %", "images", "hardest class", "easiest class"):
        table.add_column(column, no_wrap=column not in ("weights", "hardest class", "easiest class"))
    for line in results:
        known = sorted((share, name) for name, share in line["per_class"].items() if share is not None)
        ends = (f"{name} {100 * share:.1f}" for share, name in (known[0], known[-1])) if known else ("-", "-")
        shares = (f"{100 * line[figure]:.2f}" for figure in ("miou", "pixel_accuracy"))
        table.add_row(line["name"], str(line["step"]), *shares, str(line["num_images"]), *ends)
    return table
