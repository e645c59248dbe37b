"""The table of results fits a terminal of 80 characters."""

import io

from rich.console import Console

from finetune.detection.results_table import results_table


def test_boxes_and_masks_have_a_row_each_and_nothing_is_cut():
    figures = dict.fromkeys(("AP", "AP50", "AP75", "AP_small", "AP_medium"), 1.0) | {"AP_large": None}
    results = [{"name": "best ema", "step": 123456, "box": figures, "mask": figures, "num_images": 5000}]
    shown = io.StringIO()
    Console(file=shown, width=80).print(results_table(results, title="runs/x"))
    assert "…" not in shown.getvalue()
    assert shown.getvalue().count("best ema") == 2
    assert shown.getvalue().count("100.0") == 10
