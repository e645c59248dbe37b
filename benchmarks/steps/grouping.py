"""Cost of attention groups against their size, for three rules, and the time that planning takes.

Repeats the study of GreenMIM's paper on Swin-B at 224 px, window 7: random masks, each stage and shift, the cost of the
attention core at every group size with the fewest groups there (mean and standard deviation over masks), the chosen
size marked. Then times all plans of one step, uncached, on one core.

    python benchmarks/steps/grouping.py --out benchmarks/results/grouping_cpu_2026-11

Prints one JSON line last; exits 1 where a goal below is missed, unless --no-goal.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import tyro

from backbones.visible.bin_packing import Budget, BudgetExceededError, best_fit_decreasing, pack, volume_needs
from backbones.visible.cost_models import Core
from backbones.visible.grouping import RULES, Grouping, clear_plans, group_windows
from backbones.visible.window_layout import window_ids
from benchmarks.goals import Goal, finish, machine
from engine.randomness import stream

GOAL_MEDIAN_MS = 3.0
GOAL_WORST_MS = 50.0

UNITS = 7
WINDOW = 7
GRIDS = (56, 28, 14, 7)
LAYERS = tuple(
    (stage, shift) for stage, grid in enumerate(GRIDS, start=1) for shift in (0, 3) if grid > WINDOW or not shift
)
STUDIED = tuple(layer for layer in LAYERS if layer[0] < 4)
RATIOS = ("0.5", "0.6", "0.7", "0.75", "0.8", "0.85")
DEFAULT_RATIO = "0.75"
LARGEST_SIZE = 3 * WINDOW**2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Group plans of Swin-B/224: cost against group size, three rules, and planning time."""

    masks: int = 100
    """Random masks per ratio of the study."""
    timed_masks: int = 1000
    """Random masks whose plans are timed."""
    seed: int = 0
    """Seed of the masks."""
    out: Path | None = None
    """Also write the results to this path with .json, .png and .md added."""
    goal: bool = True
    """Exit 1 where a goal is missed."""


def main() -> None:
    """Run the study and the timing."""
    options = tyro.cli(Options)
    figures: dict[str, Any] = {"machine": machine(), "model": "swin_base_patch4_window7_224", "masks": options.masks}
    figures["timing"] = timing(options)
    study = {ratio: study_ratio(options, ratio) for ratio in RATIOS}
    figures["rules"] = {ratio: rules for ratio, (rules, _) in study.items()}
    if options.out:
        curves = {ratio: curves for ratio, (_, curves) in study.items()}
        write_results(options.out, figures, curves)
    goals = [
        Goal(name="median planning time of a step (ms)", value=figures["timing"]["median_ms"], at_most=GOAL_MEDIAN_MS),
        Goal(name="worst planning time of a step (ms)", value=figures["timing"]["worst_ms"], at_most=GOAL_WORST_MS),
    ]
    finish(figures, goals, check=options.goal)


def masks(options: Options, *, ratio: str, number: int, name: str) -> Iterator[np.ndarray]:
    """Yield the visible units, as rows and columns, of each random mask."""
    num_visible = int(UNITS**2 * (1 - Fraction(ratio)))
    for k in range(number):
        chosen = np.sort(stream(options.seed, name, ratio, k).permutation(UNITS**2)[:num_visible])
        yield np.stack(np.divmod(chosen, UNITS), axis=1)


def window_counts(units: np.ndarray, *, stage: int, shift: int) -> list[int]:
    """Count the visible tokens of each window that has any."""
    side = GRIDS[stage - 1] // UNITS
    inside = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    coords = (units[:, None] * side + inside).reshape(-1, 2)
    ids = window_ids(coords, window=(WINDOW, WINDOW), shift=(shift, shift))
    return np.unique(ids, axis=0, return_counts=True)[1].tolist()


def timing(options: Options) -> dict[str, Any]:
    """Time all plans of a step, from window counts, with nothing cached."""
    times_ms: list[float] = []
    plans: list[Grouping] = []
    for units in masks(options, ratio=DEFAULT_RATIO, number=options.timed_masks, name="timed"):
        layers = [window_counts(units, stage=stage, shift=shift) for stage, shift in LAYERS]
        clear_plans()
        start = time.process_time()
        plans += [group_windows(counts) for counts in layers]
        times_ms.append((time.process_time() - start) * 1e3)
    gaps = [plan.cost / plan.lower_bound - 1 for plan in plans if not plan.proved]
    return {
        "masks": options.timed_masks,
        "median_ms": round(float(np.median(times_ms)), 3),
        "p99_ms": round(float(np.quantile(times_ms, 0.99)), 3),
        "worst_ms": round(max(times_ms), 3),
        "plans": len(plans),
        "unproved": len(gaps),
        "largest_gap": round(max(gaps, default=0.0), 4),
    }


def study_ratio(options: Options, ratio: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the rules with the optimum, and draw the curves of cost against group size, per layer."""
    units = list(masks(options, ratio=ratio, number=options.masks, name="study"))
    rules: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for stage, shift in STUDIED:
        layers = [window_counts(mask, stage=stage, shift=shift) for mask in units]
        plans = {rule: [group_windows(counts, rule=rule) for counts in layers] for rule in RULES}
        name = f"stage {stage}, shift {shift}"
        rules[name] = compare_rules(layers, plans)
        curves[name] = cost_curve(layers, plans["optimal"])
    rules["all layers"] = {
        rule: over_optimum([rules[name][rule]["costs"] for name in curves], rules, curves) for rule in RULES
    }
    for name in curves:
        for rule in RULES:
            del rules[name][rule]["costs"]
    return rules, curves


def compare_rules(layers: list[list[int]], plans: dict[str, list[Grouping]]) -> dict[str, Any]:
    """Group size, padding and cost of each rule for one layer."""
    least = np.array([plan.cost for plan in plans["optimal"]])
    figures: dict[str, Any] = {"windows": round(float(np.mean([len(counts) for counts in layers])), 1)}
    for rule, chosen in plans.items():
        costs = np.array([plan.cost for plan in chosen])
        padding = [
            1 - sum(counts) / (plan.num_groups * plan.group_size) for counts, plan in zip(layers, chosen, strict=True)
        ]
        figures[rule] = {
            "group_size": round(float(np.mean([plan.group_size for plan in chosen])), 1),
            "padding": round(float(np.mean(padding)), 4),
            "over_optimum_mean": round(float((costs / least).mean()) - 1, 4),
            "over_optimum_worst": round(float((costs / least).max()) - 1, 4),
            "unproved": sum(not plan.proved for plan in chosen) if rule == "optimal" else None,
            "costs": costs,
        }
    return figures


def over_optimum(costs: list[np.ndarray], rules: dict[str, Any], names: dict[str, Any]) -> dict[str, float]:
    """By how much a rule's cost, summed over layers weighted by width and depth, exceeds the optimum."""
    weights = [blocks_times_channels(name) for name in names]
    total = sum(weight * cost for weight, cost in zip(weights, costs, strict=True))
    least = sum(weight * rules[name]["optimal"]["costs"] for weight, name in zip(weights, names, strict=True))
    ratio = np.asarray(total) / np.asarray(least)
    return {
        "over_optimum_mean": round(float(ratio.mean()) - 1, 4),
        "over_optimum_worst": round(float(ratio.max()) - 1, 4),
    }


def blocks_times_channels(layer: str) -> int:
    """The weight of a layer of Swin-B in a sum over the network: depths 2, 2, 18, half of them shifted."""
    stage = int(layer.split(",")[0].removeprefix("stage "))
    return (1, 1, 9)[stage - 1] * 128 * 2 ** (stage - 1)


def cost_curve(layers: list[list[int]], plans: list[Grouping]) -> dict[str, Any]:
    """Mean and standard deviation of cost over the optimum's, per group size that half of the masks allow."""
    relative = np.full((len(layers), LARGEST_SIZE + 1), np.nan)
    for row, counts, plan in zip(relative, layers, plans, strict=True):
        for size in range(max(counts), min(LARGEST_SIZE, sum(counts)) + 1):
            row[size] = fewest_groups(counts, capacity=size) * Core().per_group(size) / plan.cost
    sizes = np.flatnonzero(np.isfinite(relative).sum(axis=0) * 2 >= len(layers))
    return {
        "group_size": sizes.tolist(),
        "mean": np.nanmean(relative[:, sizes], axis=0).round(4).tolist(),
        "sd": np.nanstd(relative[:, sizes], axis=0).round(4).tolist(),
        "chosen": [plan.group_size for plan in plans],
    }


def fewest_groups(counts: list[int], *, capacity: int) -> int:
    """Count the fewest groups of ``capacity`` (best-fit decreasing's, where 400 nodes do not settle it)."""
    sizes = sorted(counts, reverse=True)
    most = len(best_fit_decreasing(sizes, capacity=capacity))
    budget = Budget(400)
    for num_groups in range(volume_needs(sizes, capacity=capacity), most):
        try:
            if pack(sizes, num_bins=num_groups, capacity=capacity, budget=budget) is not None:
                return num_groups
        except BudgetExceededError:
            break
    return most


def write_results(out: Path, figures: dict[str, Any], curves: dict[str, Any]) -> None:
    """Write the JSON with all curves, the figure and the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps({**figures, "curves": curves}) + "\n")
    draw(curves, figures["rules"], path=out.with_suffix(".png"))
    out.with_suffix(".md").write_text(table(figures, name=out.name))


def draw(curves: dict[str, Any], rules: dict[str, Any], *, path: Path) -> None:
    """Draw one panel per stage and shift, and the rules against the mask ratio."""
    mpl.use("agg")
    figure, panels = plt.subplots(2, 4, figsize=(19, 8.5), layout="constrained")
    for (stage, shift), panel in zip(STUDIED, panels[:, :3].T.flat, strict=True):
        draw_curve(panel, {ratio: layers[f"stage {stage}, shift {shift}"] for ratio, layers in curves.items()})
        panel.set_title(f"stage {stage}, shift {shift}", fontsize=11)
    panels[0, 0].legend(title="mask ratio", fontsize=8, loc="lower right")
    for panel, figure_name, title in zip(
        panels[:, 3], ("over_optimum_mean", "over_optimum_worst"), ("mean", "worst mask"), strict=True
    ):
        draw_rules(panel, rules, figure_name)
        panel.set_title(f"all layers of stages 1-3, {title}", fontsize=11)
    figure.suptitle(
        "Swin-B, 224 px, window 7: attention-core cost of the fewest groups at each group size, over the optimum's "
        f"(line: mean, band: sd at ratio {DEFAULT_RATIO}); bars: how often each size is chosen there"
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_curve(panel: Any, layers: dict[str, Any]) -> None:
    """Draw the curves of one stage and shift, with the chosen sizes at the default ratio as bars."""
    for k, (ratio, curve) in enumerate(layers.items()):
        main_one = ratio == DEFAULT_RATIO
        colour = "black" if main_one else plt.get_cmap("viridis")(k / len(layers))
        panel.plot(curve["group_size"], curve["mean"], color=colour, lw=2 if main_one else 0.9, label=ratio)
        if main_one:
            mean, sd = np.array(curve["mean"]), np.array(curve["sd"])
            panel.fill_between(curve["group_size"], mean - sd, mean + sd, color="black", alpha=0.15)
            sizes, times = np.unique(curve["chosen"], return_counts=True)
            panel.bar(sizes, 0.3 * times / times.max(), width=1, bottom=0.7, color="tab:red", alpha=0.7, label="chosen")
            panel.axvline(np.mean(curve["chosen"]), color="tab:red", lw=1, ls="--")
    panel.set(ylim=(0.7, 2.6), xlabel="group size (tokens)", ylabel="cost / least cost")
    panel.grid(alpha=0.3)


def draw_rules(panel: Any, rules: dict[str, Any], name: str) -> None:
    """Draw what each rule costs over the optimum against the mask ratio."""
    for rule in RULES:
        panel.plot(
            [float(r) for r in rules], [100 * rules[r]["all layers"][rule][name] for r in rules], "o-", label=rule
        )
    panel.set(xlabel="mask ratio", ylabel="cost over the optimum (%)")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def table(figures: dict[str, Any], *, name: str) -> str:
    """Write the results as Markdown."""
    timed, measured_on = figures["timing"], figures["machine"]
    lines = [
        "# Attention groups: cost against size, three rules, planning time",
        "",
        f"`python benchmarks/steps/grouping.py --out benchmarks/results/{name}` on {measured_on['processor']}, "
        f"one core; Python {measured_on['python']}, NumPy {measured_on['numpy']}. Swin-B, 224 px, window 7; "
        "cost model `core` (2 g^2 C).",
        "",
        f"All {len(LAYERS)} plans of one step (ratio {DEFAULT_RATIO}), uncached, process CPU time over "
        f"{timed['masks']} masks: "
        f"median {timed['median_ms']} ms, 99 % {timed['p99_ms']} ms, worst {timed['worst_ms']} ms "
        f"(goals {GOAL_MEDIAN_MS:g} and {GOAL_WORST_MS:g}). Proof cut short in {timed['unproved']} of "
        f"{timed['plans']} plans, at most {100 * timed['largest_gap']:.2f} % above the bound.",
        "",
        f"Cost over the optimum, {figures['masks']} masks per ratio, mean (worst mask):",
        "",
        "| ratio | layer | windows | optimal g | unproved | greedy with search | largest window |",
        "|---|---|---|---|---|---|---|",
    ]
    for ratio, layers in figures["rules"].items():
        lines += [row(ratio, layer, costs) for layer, costs in layers.items()]
    return "\n".join([*lines, "", f"![cost against group size]({name}.png)", ""])


def row(ratio: str, layer: str, costs: dict[str, Any]) -> str:
    """Write one line of the table."""
    best = costs["optimal"]
    over = [
        f"{100 * costs[rule]['over_optimum_mean']:.1f} % ({100 * costs[rule]['over_optimum_worst']:.1f} %)"
        for rule in ("greedy", "largest_window")
    ]
    cells = [ratio, layer, costs.get("windows", ""), best.get("group_size", ""), best.get("unproved", ""), *over]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
