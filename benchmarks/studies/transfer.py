"""Does pretraining help on real images? ``python benchmarks/studies/transfer.py --data FOLDER``.

FOLDER holds labelled WebDataset shards ``train-*.tar`` and ``val-*.tar``. Pretraining sees train without its labels. In
the order of what it proves: fine-tuned accuracy, pretrained against scratch, same recipe and steps, several seeds, with
all labels and with 10 per class; scratch given the pretraining's compute on top; three controls under the same recipe
(decoder features at permuted positions, no per-unit normalisation, the dense way at equal time); linear probe and kNN
beside a random network and 8x8 raw pixels.

Every arm is a run of the project's own programs in a folder of its own, so an interrupted benchmark goes on where it
was.
"""

import argparse
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import yaml

from benchmarks.goals import finish, machine
from benchmarks.studies.accuracy import top1

ROOT = Path(__file__).resolve().parents[2]
PRETRAININGS = {
    "greenmim": [],
    "permuted": ["--mim.feature-positions", "permuted"],
    "raw_targets": ["--mim.normalise-targets", "False"],
    "dense": ["--mim.encoder", "dense"],
}
LABELS = {"all": [], "10_per_class": ["--task.labels-per-class", "10"]}
FEW_LABELS_STEPS = 2
"""Fine-tuning on 10 labels per class takes this many times fewer steps."""
CALIBRATION_STEPS = 30
"""Length of the runs that tell what a step of the sparse and of the dense way costs."""
lock = threading.Lock()


def main() -> None:
    """Run the arms and print their figures."""
    options = _options()
    study = Study(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        pretrained = {name: pool.submit(study.pretrain, name) for name in options.pretrainings}
        for name, future in pretrained.items():
            future.result()
            say(f"pretrained: {name}")
        tasks = study.tasks()
        for task, future in [(task, pool.submit(study.measure, task)) for task in tasks]:
            say(f"{task}: {100 * future.result():.2f} %")
    figures = {"machine": machine(), "scale": options.scale, **study.figures(tasks)}
    options.out.joinpath("figures.json").write_text(json.dumps(figures, indent=1))
    finish(figures, [], check=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of train-*.tar and val-*.tar")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--scale", choices=["cpu", "gpu"], default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, default=3, help="of the two that are compared first")
    parser.add_argument(
        "--control-seeds", type=int, help="of the controls and of scratch with more compute (as --seeds)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each on a CPU")
    parser.add_argument("--pretrainings", nargs="+", choices=list(PRETRAININGS), default=list(PRETRAININGS))
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument(
        "--skip-scratch-more", action="store_true", help="leave out scratch with the pretraining's compute"
    )
    parser.add_argument("--no-goal", action="store_true", help="only measure (there is no goal here to miss)")
    return parser.parse_args()


@dataclass(frozen=True)
class Task:
    """One accuracy to measure."""

    start: str
    """A pretraining, ``scratch``, ``scratch_more`` (with the pretraining's compute on top) or ``random``."""
    method: str
    """``finetune``, ``linear`` or ``knn``."""
    labels: str
    seed: int

    def __str__(self) -> str:
        """Name the task as its folder is named."""
        return f"{self.method}_{self.start}_{self.labels}_seed{self.seed}"


class Study:
    """The runs of one benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.out.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            if not (self.out / split / "manifest.json").exists():
                self._run(
                    "index",
                    [
                        "data/main.py",
                        "index",
                        "--source",
                        str(options.data),
                        "--pattern",
                        f"{split}-*.tar",
                        "--out",
                        str(self.out / split),
                    ],
                )

    def pretrain(self, name: str) -> None:
        """Pretrain one arm; the dense one for as many steps as take the time of the first."""
        folder = self.out / f"pretrain_{name}"
        if (folder / "backbone").exists():
            return
        options = list(PRETRAININGS[name])
        if name == "dense":
            share = self._seconds_per_step("greenmim") / self._seconds_per_step("dense")
            options += ["--optimizer.steps", str(round(share * self._recipe_steps()))]
        self._pretrain(folder, options)

    def tasks(self) -> list[Task]:
        """List what to measure, the strongest proof first."""
        options = self.options
        starts = [*options.pretrainings, "scratch", *([] if options.skip_scratch_more else ["scratch_more"])]
        control_seeds = options.seeds if options.control_seeds is None else options.control_seeds
        runs = [
            Task(start, "finetune", labels, seed)
            for seed in range(options.seeds)
            for labels in options.labels
            for start in starts
            if start in ("greenmim", "scratch") or seed < control_seeds
        ]
        # the two that are compared first; scratch_more takes its length from the others' times
        runs.sort(key=lambda task: (task.start == "scratch_more", task.start not in ("greenmim", "scratch")))
        probes = [Task(s, method, "all", 0) for method in ("linear", "knn") for s in (*options.pretrainings, "random")]
        return probes + runs

    def measure(self, task: Task) -> float:
        """The task's top-1 accuracy on val; it is run if it was not."""
        folder = self.out / str(task)
        if not (folder / "evaluation.json").exists():
            self._run(str(task), ["finetune/main.py", *self._finetune_words(task, folder)])
        return top1(folder)

    def figures(self, tasks: list[Task]) -> dict[str, Any]:
        """Sum up every arm: mean and deviation over seeds, and how long the runs took."""
        scores: dict[str, Any] = {}
        for task in tasks:
            scores.setdefault(f"{task.method}_{task.start}_{task.labels}", []).append(self.measure(task))
        table = {
            name: {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None, "n": len(values)}
            for name, values in scores.items()
        }
        seconds = {name: self._seconds(self.out / f"pretrain_{name}") for name in self.options.pretrainings}
        return {"top1": table, "pretraining_seconds": seconds}

    def _finetune_words(self, task: Task, folder: Path) -> list[str]:
        options = ["--recipe", f"benchmarks/studies/transfer/{self.options.scale}_finetune.yaml", *LABELS[task.labels]]
        options += ["--data.shards", str(self.out / "train"), "--val-shards", str(self.out / "val")]
        options += ["--run.folder", str(folder), "--run.seed", str(task.seed), "--task.method", task.method]
        if task.start in PRETRAININGS:
            options += ["--backbone.init", str(self.out / f"pretrain_{task.start}" / "backbone")]
        if task.labels != "all":
            options += ["--optimizer.steps", str(self._finetune_steps() // FEW_LABELS_STEPS)]
        if task.start == "scratch_more":
            options += ["--optimizer.steps", str(self._steps_with_pretraining(task))]
        return options

    def _steps_with_pretraining(self, task: Task) -> int:
        """Count the fine-tuning steps that take the time of pretraining and fine-tuning together."""
        scratch = self.out / str(Task("scratch", "finetune", task.labels, task.seed))
        steps = json.loads((scratch / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        return round(steps * (1 + self._seconds(self.out / "pretrain_greenmim") / self._seconds(scratch)))

    def _recipe_steps(self) -> int:
        return _steps_of(ROOT / f"benchmarks/studies/transfer/{self.options.scale}_pretrain.yaml")

    def _finetune_steps(self) -> int:
        return _steps_of(ROOT / f"benchmarks/studies/transfer/{self.options.scale}_finetune.yaml")

    def _seconds_per_step(self, name: str) -> float:
        folder = self.out / f"calibrate_{name}"
        with lock:
            if not (folder / "backbone").exists():
                self._pretrain(
                    folder,
                    [
                        *PRETRAININGS[name],
                        "--optimizer.steps",
                        str(CALIBRATION_STEPS),
                        "--optimizer.warmup-steps",
                        "5",
                        "--report.every-steps",
                        "5",
                    ],
                )
        return self._seconds(folder) / CALIBRATION_STEPS

    def _pretrain(self, folder: Path, options: list[str]) -> None:
        recipe = f"benchmarks/studies/transfer/{self.options.scale}_pretrain.yaml"
        options = ["--recipe", recipe, "--data.shards", str(self.out / "train"), "--run.folder", str(folder), *options]
        self._run(folder.name, ["pretrain/main.py", *options])

    def _seconds(self, folder: Path) -> float:
        """How long a run took, from the median time of its steps: what else the machine did then counts less."""
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ends = [0, *(line["step"] for line in lines)]
        per_step = [line["seconds"] / (line["step"] - before) for line, before in zip(lines, ends, strict=False)]
        return median(per_step) * lines[-1]["step"]

    def _run(self, name: str, command: list[str]) -> None:
        log = self.out / f"{name}.log"
        with log.open("a") as output:
            code = subprocess.run(
                [sys.executable, *command], cwd=ROOT, stdout=output, stderr=output, check=False
            ).returncode
        if code:
            sys.exit(f"{name} ended with exit code {code}:\n{log.read_text()[-3000:]}")


def _steps_of(recipe: Path) -> int:
    return int(yaml.safe_load(recipe.read_text())["optimizer"]["steps"])


def say(text: str) -> None:
    """Show a line of progress."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
