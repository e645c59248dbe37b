"""The main job on one machine in minutes: shards, GreenMIM pretraining, hand-off, fine-tuning, one table.

Run by ``make demo``.

Without ``--images`` it draws labelled scenes. Every step is one of the project's own commands, shown before it runs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.studies.accuracy import top1
from engine.errors import one_line_errors
from engine.run.own_folder import check_own_folder

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "examples" / "demo"
NUM_SCENES, SCENE_SIZE = 5000, 128
MARKER = ".demo"
OWN = re.compile(r"\.demo|shards|pretrain|finetune_(pretrained|scratch)|side_\d+\.log")
"""What a demo leaves in its folder."""
console = Console(highlight=False)


@one_line_errors
def main() -> None:
    """Run the job and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="", help="folder of images, by class or flat; empty draws scenes")
    parser.add_argument("--out", type=Path, default=ROOT / "demo")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args()
    started = time.monotonic()
    make_room(options.out)
    shards, labelled = write_shards(options)
    pretrain(options, shards=shards, labelled=labelled)
    table = Table(title="What the run measured", title_justify="left")
    table.add_column("")
    if labelled:
        compare(options, shards=shards, table=table)
    else:
        console.print("\nThe folder has no class subfolders, so there are no labels to fine-tune on.")
    speed_rows(options.out / "pretrain", table)
    console.print(table)
    console.print(READING.replace("\n", " ").strip())
    console.print(f"backbone  {options.out / 'pretrain' / 'backbone'}")
    console.print(f"report    {options.out / 'pretrain' / 'report.html'}")
    console.print(f"took {time.monotonic() - started:.0f} s")


READING = """
What so short a run can show: the loss falls, reconstructions take shape, and fine-tuning starts from a better place.
The probes of the frozen encoder need longer: on photographs the linear probe rises after some hundred steps more (see
benchmarks/results), and kNN may stay below raw pixels. What it cannot show: the accuracy that masked image modelling
reaches after hundreds of epochs on a million images.
"""


def make_room(out: Path) -> None:
    """Empty the folder of an earlier demo; leave any other alone, and what somebody else put there."""
    check_own_folder(out, marks=(MARKER,), is_own=lambda name: OWN.fullmatch(name) is not None, option="--out")
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (out / MARKER).touch()


def write_shards(options: argparse.Namespace) -> tuple[Path, bool]:
    """Write train and val shards and return their folder and whether they are labelled."""
    out = options.out / "shards"
    source = ["scenes", "--count", str(400 if options.quick else NUM_SCENES), "--size", str(SCENE_SIZE)]
    if options.images:
        source = [options.images, "--size", "160"]
    run(
        "Writing shards",
        [sys.executable, "data/main.py", "write", "--source", *source, "--out", str(out), "--val-fraction", "0.2"],
    )
    manifest = json.loads((out / "train" / "manifest.json").read_text())
    return out, bool(manifest.get("classes"))


def pretrain(options: argparse.Namespace, *, shards: Path, labelled: bool) -> None:
    """Pretrain under DeepSpeed ZeRO-1 on 2 CPU processes, or on all GPUs."""
    launcher = ["--config_file", "pretrain/cpu_two_processes.yaml"]
    if torch.cuda.is_available():
        launcher = ["--use_deepspeed", "--zero_stage", "1", "--num_processes", str(torch.cuda.device_count())]
    arguments = ["--recipe", str(RECIPES / "pretrain.yaml"), "--data.shards", str(shards / "train")]
    arguments += ["--run.folder", str(options.out / "pretrain")]
    if labelled:
        arguments += ["--probe.train-shards", str(shards / "train"), "--probe.val-shards", str(shards / "val")]
        arguments += ["--probe.max-samples", "2000", "--probe.every-steps", str(5 if options.quick else 100)]
    if options.quick:
        arguments += ["--optimizer.steps", "10", "--optimizer.warmup-steps", "2"]
    run("Pretraining on visible tokens", [*accelerate(), *launcher, "pretrain/main.py", *arguments])


def compare(options: argparse.Namespace, *, shards: Path, table: Table) -> None:
    """Fine-tune the pretrained network and the same one from scratch, side by side, and fill the table."""
    folders = {name: options.out / f"finetune_{name}" for name in ("pretrained", "scratch")}
    common = ["--recipe", str(RECIPES / "finetune.yaml"), "--data.shards", str(shards / "train")]
    common += ["--val-shards", str(shards / "val")]
    if options.quick:
        common += ["--optimizer.steps", "10", "--optimizer.warmup-steps", "2"]
    more = {"pretrained": ["--backbone.init", str(options.out / "pretrain" / "backbone")], "scratch": []}
    run(
        "Fine-tuning, pretrained and from scratch, side by side",
        *([sys.executable, "finetune/main.py", *common, "--run.folder", str(folders[n]), *more[n]] for n in folders),
        logs=options.out,
    )
    probes = [json.loads(line) for line in (options.out / "pretrain" / "probes.jsonl").read_text().splitlines()]
    first, last = probes[0], probes[-1]
    table.add_column("pretrained", justify="right")
    table.add_column("no pretraining", justify="right")
    table.add_row("fine-tuned, top-1", *(percent(top1(folder)) for folder in folders.values()))
    table.add_row("linear probe, top-1", percent(last["linear_accuracy"]), percent(first["linear_accuracy"]))
    table.add_row("kNN, top-1", percent(last["knn_accuracy"]), percent(first["knn_accuracy"]))
    table.add_row("kNN of 8x8 raw pixels", "", percent(first["knn_accuracy_of_pixels"]))


def speed_rows(folder: Path, table: Table) -> None:
    """Add images/s and memory of the pretraining to the table."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speed = sorted(line["images_per_s"] for line in lines)[len(lines) // 2]
    if not table.columns[1:]:
        table.add_column("pretraining", justify="right")
    table.add_row("pretraining loss, first → last", f"{lines[0]['loss']:.3f} → {lines[-1]['loss']:.3f}")
    table.add_row("pretraining images/s", f"{speed:,.0f}")
    table.add_row("peak memory per process", f"{max(line['peak_memory_bytes'] for line in lines) / 2**30:.2f} GiB")


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.1f} %"


def accelerate() -> list[str]:
    """The command that starts accelerate's launcher from this environment."""
    return [str(Path(sys.executable).parent / "accelerate"), "launch"]


def run(title: str, *commands: list[str], logs: Path | None = None) -> None:
    """Show and run commands side by side from the repository root; end with the exit code of one that fails.

    The first one's output is shown, the others' goes to log files, so that progress stays readable.
    """
    console.print(f"\n[bold]{title}[/bold]")
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(commands)))} if len(commands) > 1 else {}
    started: list[tuple[subprocess.Popen[bytes], Path | None]] = []
    for number, command in enumerate(commands):
        shown = " ".join(os.path.relpath(word, ROOT) if word.startswith(str(ROOT)) else word for word in command)
        log = logs / f"side_{number}.log" if logs and number else None
        console.print(f"[dim]$ {shown}{f' > {os.path.relpath(log, ROOT)}' if log else ''}[/dim]", soft_wrap=True)
        output = log.open("wb") if log else None
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **threads}, stdout=output, stderr=output)
        started.append((process, log))
    for process, log in started:
        if process.wait():
            console.print(f"[red]a command ended with exit code {process.returncode}[/red]")
            if log:
                console.print(log.read_text()[-3000:])
            sys.exit(process.returncode)


if __name__ == "__main__":
    main()
