"""A picture of what attends to what: SecViT's clusters on a photograph, and the groups of a masked Swin's windows.

Legend: p q rows and columns of pixels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image, ImageOps
from rich.console import Console

from backbones.build import layout_spec
from backbones.commands.config import DrawClusters
from backbones.sec.clusters import Clusters, clusters_of, load_network, normalised
from backbones.visible.layout import VisibleLayout, build_layout
from backbones.visible.window_layout import GroupPlan, StageLayout, StageSpec, window_ids
from backbones.weights.handoff import skeleton
from engine.errors import UserError, at_path, is_refusal
from engine.terms import Size

Photograph = UInt8[np.ndarray, "p q 3"]
HEADS = 2
PANELS = 4
TINT = 0.62
"""Share of the colour that says something in what is drawn over the photograph."""
GROUP_COLOURS = "tab20"
CLUSTER_COLOURS = "turbo"


def run_clusters(options: DrawClusters) -> None:
    """Write the drawing."""
    out = picture_file(options.out)
    network = load_network(options.backbone, img_size=options.img_size, seed=options.seed)
    image = read_photograph(options.image, options.img_size)
    clusters = clusters_of(network, normalised(image, network))
    layout = random_layout(options.swin, img_size=options.img_size, mask_ratio=options.mask_ratio, seed=options.seed)
    weights = "" if Path(options.backbone).is_dir() else " with random weights"
    title = f"{options.backbone}{weights}; {options.swin}, {options.mask_ratio:.0%} hidden"
    draw(image, clusters, layout, title=title, path=out)
    Console().print(f"wrote {out}", soft_wrap=True, markup=False)


def picture_file(out: Path) -> Path:
    """Settle the file to write a picture to: ``out``, a PNG where its name has no ending.

    Raises:
        UserError: it is a folder, in one that is not there, or of a kind that is no picture.
    """
    file = out if out.suffix else out.with_name(f"{out.name}.png")
    if file.suffix.lower()[1:] not in (endings := FigureCanvasBase.get_supported_filetypes()):
        raise UserError(f"--out {out}: no picture ends so; choose one of {', '.join(sorted(endings))}")
    for path in (out, file):
        if path.is_dir():
            raise UserError(f"--out {out}: {path} is a folder; name a file, such as {path / 'clusters.png'}")
    if not file.parent.is_dir():
        raise UserError(f"--out {out}: the folder {file.parent} is not there; make it first")
    return file


def read_photograph(path: Path, size: Size) -> Photograph:
    """Read the middle of an image file in ``size`` (height, width), upright as its EXIF data say.

    Raises:
        UserError: it is no image.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's plugins raise what they like on hostile bytes
        if not is_refusal(error) or (isinstance(error, OSError) and error.filename):
            raise
        raise UserError(f"{path}: expected a photograph that Pillow reads, {error}") from None


def random_layout(name: str, *, img_size: Size, mask_ratio: float, seed: int) -> VisibleLayout:
    """Draw a random mask and lay it out for timm's Swin ``name``.

    Raises:
        UserError: it has no windows, or the image size does not fit it, or the ratio is no share.
    """
    if not 0 <= mask_ratio < 1:
        raise UserError(f"--mask-ratio must lie in [0, 1), got {mask_ratio}")
    spec = layout_spec(skeleton(name, img_size=img_size))
    if not isinstance(spec.stages[0], StageSpec):
        raise UserError(f"{name} has no windows to group; choose a Swin, such as swin_tiny_patch4_window7_224")
    num_units = spec.units[0] * spec.units[1]
    visible = np.zeros(num_units, dtype=bool)
    visible[np.random.default_rng(seed).permutation(num_units)[: max(1, round(num_units * (1 - mask_ratio)))]] = True
    return build_layout(spec, visible.reshape(spec.units))


def draw(photograph: Photograph, clusters: list[Clusters], layout: VisibleLayout, *, title: str, path: Path) -> None:
    """Write the picture: the photograph, the clusters of two heads, and the group plans of the first stages."""
    mpl.use("Agg")
    figure = Figure(figsize=(3.1 * PANELS, 10.6), layout="constrained")
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(HEADS + 1, PANELS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0][0].imshow(photograph)
    axes[0][0].set_title("photograph", fontsize=10)
    for column, stage in enumerate(clusters[: PANELS - 1], start=1):
        for head in range(min(HEADS, len(stage.cluster))):
            _draw_clusters(axes[head][column], photograph, stage, head=head)
    _explain(axes[1][0])
    for axis, (number, spec, stage, plan) in zip(axes[HEADS], _plans(layout), strict=False):
        _draw_plan(axis, photograph, layout, stage=stage, spec=spec, plan=plan)
        axis.set_title(_plan_title(number, stage, spec, plan), fontsize=9)
    with at_path(path):
        figure.savefig(path, dpi=110)


def _draw_clusters(axis: Axes, photograph: Photograph, clusters: Clusters, *, head: int) -> None:
    colours = mpl.colormaps[CLUSTER_COLOURS]
    share = clusters.cluster[head] / (clusters.number - 1)
    axis.imshow(_tinted(photograph, share, colours, seen=np.ones(share.shape, dtype=bool)))
    rows, cols = share.shape
    tokens = rows * cols // clusters.number
    axis.set_title(
        f"stage {clusters.stage}, head {head + 1}: {clusters.number} clusters of {tokens}\n({rows}x{cols} tokens)",
        fontsize=9,
    )


def _explain(axis: Axes) -> None:
    """Draw the scale of the clusters' colours and say what they are."""
    scale = axis.inset_axes((0.08, 0.55, 0.84, 0.07))
    scale.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=CLUSTER_COLOURS)
    scale.set_xticks([0, 255], ["least", "most"], fontsize=9)
    scale.set_yticks([])
    text = "Tokens of one colour attend to\neach other. They are sorted by how\nalike their key is to the mean key:"
    axis.text(0.08, 0.68, text, transform=axis.transAxes, fontsize=10, va="bottom")
    below = "Below: what a masked Swin computes.\nWindows of one number share a group;\nhidden units are dark."
    axis.text(0.08, 0.34, below, transform=axis.transAxes, fontsize=10, va="top")


def _plans(layout: VisibleLayout) -> list[tuple[int, StageSpec, StageLayout, GroupPlan]]:
    """The first plans in which something is grouped, each as (stage number, spec, stage, plan)."""
    stages = enumerate(zip(layout.spec.stages, layout.stages, strict=True), start=1)
    return [(number, spec, stage, plan) for number, (spec, stage) in stages for plan in stage.plans][:PANELS]


def _draw_plan(
    axis: Axes,
    photograph: Photograph,
    layout: VisibleLayout,
    *,
    stage: StageLayout,
    spec: StageSpec,
    plan: GroupPlan,
) -> None:
    group = np.full(spec.grid, -1)
    rows, cols = stage.coords.T
    group[rows, cols] = plan.slot // plan.group_size
    colours = mpl.colormaps[GROUP_COLOURS]
    axis.imshow(_tinted(photograph, (group % colours.N + 0.5) / colours.N, colours, seen=group >= 0))
    stride = photograph.shape[0] / spec.grid[0], photograph.shape[1] / spec.grid[1]
    for line, shift, window, step in ((axis.axhline, 0, 0, stride[0]), (axis.axvline, 1, 1, stride[1])):
        _draw_borders(line, spec.grid[shift], spec.window[window], plan.shift[shift], step)
    ids = window_ids(stage.coords, window=spec.window, shift=plan.shift)
    for window in np.unique(ids, axis=0):
        inside = stage.coords[(ids == window).all(1)]
        token = inside[np.square(inside - inside.mean(0)).sum(1).argmin()]  # a visible one: windows have odd shapes
        row, col = (token + 0.5) * stride - 0.5
        label = axis.text(col, row, str(group[*token] + 1), ha="center", va="center", fontsize=7, weight="bold")
        label.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def _draw_borders(line: Callable[..., Any], size: int, window: int, shift: int, step: float) -> None:
    for at in range(shift or window, size, window):
        line(at * step - 0.5, color="white", linewidth=0.7)


def _plan_title(number: int, stage: StageLayout, spec: StageSpec, plan: GroupPlan) -> str:
    windows = len(np.unique(window_ids(stage.coords, window=spec.window, shift=plan.shift), axis=0))
    slots = plan.num_groups * plan.group_size
    padding = 100 * (1 - len(stage.coords) / slots)
    return (
        f"Swin, stage {number}, windows of {spec.window[0]}x{spec.window[1]} shifted by {plan.shift[0]}:\n"
        f"{windows} windows in {plan.num_groups} groups of {plan.group_size} ({padding:.0f} % padding)"
    )


def _tinted(photograph: Photograph, share: np.ndarray, colours: Colormap, *, seen: np.ndarray) -> np.ndarray:
    """Paint the photograph in grey under the colour of each token's ``share``; dark where a token is not ``seen``."""
    grey = photograph.mean(2, keepdims=True) / 255
    rows, cols = (np.arange(side) * tokens // side for side, tokens in zip(grey.shape[:2], share.shape, strict=True))
    colour = colours(share)[rows][:, cols, :3]
    seen = seen[rows][:, cols, None]
    return np.where(seen, TINT * colour + (1 - TINT) * grey, 0.25 * grey)
