"""Can every detector and segmentation head overfit eight images? ``python benchmarks/studies/overfit.py``.

Each part trains from random weights with the real program, small backbone and heads, without augmentation, on eight
images chosen by a written rule, and measures itself on them: what cannot overfit has a fault in it. CPU
minutes are the process's own.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from benchmarks.goals import Goal, finish, machine
from benchmarks.studies import overfit_detection, overfit_segmentation

MOST_MINUTES = 8.0
PARTS = {**overfit_detection.PARTS, **overfit_segmentation.PARTS}


def main() -> None:
    """Run the parts and print the figures."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"machine": machine()}
    goals: list[Goal] = []
    for name in options.parts:
        figures[name], own = PARTS[name](data=options.data, work=options.work)
        minutes = Goal(name=f"{name}: CPU minutes", value=figures[name]["cpu_minutes"], at_most=MOST_MINUTES)
        goals += [*own, minutes]
        print(name, figures[name])
    finish(figures, goals, check=not options.no_goal)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to train")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with coco_instances and camvid_semseg"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/overfit"), help="folder for shards and runs")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    return parser.parse_args()


if __name__ == "__main__":
    main()
