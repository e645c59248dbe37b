"""Plans that the fused attention is proved on."""

import numpy as np

from backbones.visible.layout import LayoutSpec, VisibleLayout
from backbones.visible.window_layout import StageLayout, group_plan

W7 = {"window": (7, 7)}
CASES = {
    "three_images": {"grid": (14, 14), **W7, "share": 0.25, "rule": "optimal", "dim": 32, "batch": 3},
    "shifted_in_tiles": {"grid": (14, 14), **W7, "shift": (3, 3), "share": 0.5, "rule": "tiles", "dim": 24},
    "images_in_uneven_shares": {
        "grid": (8, 8), **W7, "share": 0.5, "rule": "tiles", "dim": 16, "heads": 1, "batch": 5, "programs": 10,
    },
    "images_in_uneven_shares_of_several_tiles": {
        "grid": (12, 6), "window": (12, 6), "share": 1, "rule": "tiles",
        "dim": 16, "heads": 1, "batch": 5, "programs": 8,
    },
    "cut_windows": {"grid": (8, 8), **W7, "shift": (3, 3), "share": 0.5, "rule": "optimal", "dim": 16, "batch": 3},
    "oblong": {"grid": (10, 13), "window": (7, 5), "shift": (3, 2), "share": 0.6, "rule": "tiles", "dim": 64},
    "windows_of_one_token": {"grid": (12, 12), "window": (3, 3), "share": 0.1, "rule": "optimal", "dim": 16},
    "one_token": {"grid": (12, 12), "window": (3, 3), "share": 0, "rule": "tiles", "dim": 16},
    "all_visible": {"grid": (14, 14), **W7, "share": 1, "rule": "tiles", "dim": 32, "heads": 1},
    "older_rule": {"grid": (14, 14), **W7, "share": 0.3, "rule": "largest_window", "dim": 32, "heads": 1},
    "windows_in_a_row": {"grid": (12, 12), "window": (12, 6), "share": 1, "rule": "tiles", "dim": 16, "heads": 1},
    "shifted_windows_in_a_row": {
        "grid": (20, 20), "window": (10, 10), "shift": (5, 5), "share": 0.6, "rule": "tiles",
        "dim": 8, "heads": 1, "batch": 2, "programs": 30,
    },
    "shifted_in_several_tiles": {
        "grid": (20, 20), "window": (10, 10), "shift": (5, 5), "share": 1, "rule": "optimal",
        "dim": 8, "heads": 1, "batch": 2,
    },
    "largest_window": {
        "grid": (24, 24), "window": (24, 24), "share": 0.25, "rule": "optimal", "dim": 48, "heads": 1,
    },
}  # fmt: skip


def plan_for(*, grid, window, shift, share, rule, seed=0, device="cpu"):
    """Plan the attention of a random ``share`` of the tokens of ``grid``, in an order of no meaning."""
    generator = np.random.default_rng(seed)
    coords = np.argwhere(generator.random(grid) < share)
    if not len(coords):
        coords = np.zeros((1, 2), dtype=np.int64)
    generator.shuffle(coords)
    plan = group_plan(coords, grid=grid, window=window, shift=shift, rule=rule)
    stage = StageLayout(coords=coords, plans=(plan,))
    spec = LayoutSpec(img_size=grid, patch=(1, 1), unit=(1, 1), stages=(), build=tuple)
    moved = VisibleLayout(spec=spec, units=np.arange(1), stages=(stage,)).to(device)
    return moved.stages[0].plans[0]
