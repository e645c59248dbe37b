"""``report.html``: one self-contained page about a run, made from the files in its folder."""

import base64
import html
import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from engine.documents import json_lines, read_yaml
from engine.errors import UserError
from engine.run.durable import write_durably
from engine.run.reporting import PHASES
from engine.run.status import is_report
from pretrain.targets.registry import PIXELS

RECONSTRUCTION_NOTE = (
    "In every column but the first, visible units are the original's pixels, for they are the input. With per-unit "
    "normalised targets the network predicts neither mean nor contrast of a unit: the third column takes both from the "
    "original, so judge it by its structure, not by its colours. The last column uses nothing of the hidden pixels."
)
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f23 }}
h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de }}
img {{ max-width: 100% }} table {{ border-collapse: collapse }} td, th {{ padding: .25rem .8rem; text-align: left;
border-bottom: 1px solid #d0d7de }} td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
pre {{ background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: .8rem }} p.note {{ color: #57606a }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` of a run folder; return its path.

    Raises:
        UserError: the folder holds no metrics.
    """
    metrics = list(filter(is_report, _lines(folder / "metrics.jsonl")))
    if not metrics:
        raise UserError(f"{folder} holds no metrics.jsonl with a report in it; is it a run folder?")
    mpl.use("Agg")
    probes = [line for line in _lines(folder / "probes.jsonl") if "step" in line]
    body = [
        _summary(metrics, probes),
        "<h2>Loss</h2>" + _loss(metrics),
        _reconstructions(folder),
        "<h2>Probes</h2>" + _probes(probes) if probes else "",
        "<h2>Speed and memory</h2>" + _speed(metrics),
        "<h2>Where the time went</h2>" + _phases(metrics),
        "<h2>Configuration</h2>" + _text(folder / "config.yaml"),
        "<h2>Environment</h2>" + _text(folder / "environment.json"),
    ]
    path = folder / "report.html"
    page = PAGE.format(title=html.escape(f"Pretraining run {folder.name}"), body="".join(body))
    write_durably(path, page.encode())
    return path


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a file; what was no finite number is null in it, and nan here."""
    lines = json_lines(path.read_bytes()) if path.exists() else []
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def _summary(metrics: list[dict[str, Any]], probes: list[dict[str, Any]]) -> str:
    last = metrics[-1]
    rows: list[tuple[str, str]] = [
        ("steps", f"{last['step']:,}"),
        ("loss, first report → last", f"{metrics[0]['loss']:.4f} → {last['loss']:.4f}"),
        ("images/s, median of reports", f"{_median([line['images_per_s'] for line in metrics]):,.1f}"),
        ("peak memory of rank 0", f"{max(line['peak_memory_bytes'] for line in metrics) / 2**30:.2f} GiB"),
    ]
    energy = [line["energy_j"] for line in metrics if "energy_j" in line]
    rows.append(("energy", f"{sum(energy) / 3.6e6:.3f} kWh" if energy else "not measured (no NVIDIA GPU)"))
    for line in probes[-1:]:
        for key in line:
            if "accuracy" in key:
                rows.append((f"{key.replace('_', ' ')}, last probe", f"{100 * line[key]:.1f} %"))
    return _table(rows)


def _loss(metrics: list[dict[str, Any]]) -> str:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in metrics]
    axes.plot(steps, [line["loss"] for line in metrics], color="#0969da", label="loss")
    axes.set_xlabel("step")
    axes.set_ylabel("mean squared error")
    axes.grid(alpha=0.3)
    rate = axes.twinx()
    rate.plot(steps, [line["lr"] for line in metrics], color="#bf8700", alpha=0.7, label="learning rate")
    rate.set_ylabel("learning rate", color="#bf8700")
    return _figure(figure, "loss and learning rate over steps")


def _reconstructions(folder: Path) -> str:
    path, target = folder / "reconstructions.png", _target(folder)
    if target != PIXELS:
        note, image = f"The target {html.escape(target)} is no pixels: what the network predicts cannot be drawn.", ""
    elif not path.exists():
        return ""
    else:
        note, image = RECONSTRUCTION_NOTE, _image(path.read_bytes(), "reconstructions")
    return f'<h2>Reconstructions</h2><p class="note">{note}</p>{image}'


def _target(folder: Path) -> str:
    """Read what the run predicts; runs from before there was a choice predict pixels."""
    config = folder / "config.yaml"
    mim = read_yaml(config).get("mim") if config.exists() else None
    return mim.get("target", PIXELS) if isinstance(mim, dict) else PIXELS


def _probes(probes: list[dict[str, Any]]) -> str:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in probes]
    for name, colour in (("linear_accuracy", "#0969da"), ("knn_accuracy", "#1a7f37")):
        if name in probes[0]:
            label = name.replace("_accuracy", "")
            axes.plot(steps, [100 * line[name] for line in probes], "o-", color=colour, label=f"{label} probe")
            axes.axhline(
                100 * probes[0][name], color=colour, ls=":", label=f"{label} probe at step {probes[0]['step']}"
            )
    pixels = probes[0].get("knn_accuracy_of_pixels")
    if pixels is not None:
        axes.axhline(100 * pixels, color="#cf222e", ls="--", label="kNN of 8x8 raw pixels")
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    note = (
        "The floors are what needs no pretraining: the network before its first step, and raw pixels. kNN may stay "
        "below them early on."
    )
    return f'<p class="note">{note}</p>' + _figure(figure, "probe accuracy over steps")


def _speed(metrics: list[dict[str, Any]]) -> str:
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [line["step"] for line in metrics]
    left.plot(steps, [line["images_per_s"] for line in metrics], color="#0969da")
    left.set_ylabel("images/s, all processes")
    right.plot(steps, [line["peak_memory_bytes"] / 2**30 for line in metrics], color="#8250df")
    right.set_ylabel("peak memory of rank 0, GiB")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    return _figure(figure, "images per second and peak memory over steps")


def _phases(metrics: list[dict[str, Any]]) -> str:
    seconds = {name: sum(line.get(f"seconds_{name}", 0.0) for line in metrics) for name in PHASES}
    total = sum(seconds.values()) or 1.0
    rows = [(name, f"{value:.1f} s · {100 * value / total:.1f} %") for name, value in seconds.items()]
    note = (
        "Host time of rank 0 inside the loop. On a GPU, work that runs behind the host shows in the phase that waits "
        "for it."
    )
    return f'<p class="note">{note}</p>' + _table(rows)


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (
        f'<tr><td>{html.escape(name)}</td><td class="number">{html.escape(value)}</td></tr>' for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _text(path: Path) -> str:
    return f"<pre>{html.escape(path.read_text(errors='replace'))}</pre>" if path.exists() else ""


def _figure(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return _image(buffer.getvalue(), alt)


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
