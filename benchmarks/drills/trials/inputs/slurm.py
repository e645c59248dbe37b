"""What `launch/main.py` refuses and shows without a Slurm: sweeps, folders, and what only the program can tell."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.drills.trials.case import Case
from benchmarks.drills.trials.tiny_runs import make_shards, tiny_pretraining

CLUSTER = ("--cluster", "a100", "--cluster.gpus-per-node", "1", "--dry-run")


def shown(*options: str, files: tuple[str, ...] = ()) -> Callable[[Path], list[str]]:
    """Show what would be submitted of a tiny pretraining, with recipes that are there."""

    def make(folder: Path) -> list[str]:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("run: {seed: 3}")
        return ["launch/main.py", "pretrain", *tiny_pretraining(folder), *CLUSTER, *options]

    return make


def refused(name: str, says: str, *options: str, files: tuple[str, ...] = ()) -> Case:
    """A submission that is refused in one line."""
    return Case(name=name, make=shown(*options, files=files), says=says, code=1)


def waiting_for_a_backbone(folder: Path) -> list[str]:
    """Submit a fine-tuning whose backbone a queued run has yet to write."""
    shards = make_shards(folder / "shards")
    data = ["--data.shards", shards, "--val-shards", shards, "--run.folder", "runs/x"]
    return ["launch/main.py", "finetune", *data, "--backbone.init", "runs/queued/backbone", *CLUSTER]


CASES = [
    Case(name="backbone_to_come", make=waiting_for_a_backbone, says="if that will be right .*--skip-check", code=1),
    Case(name="sound", make=shown(), says="#SBATCH --nodes=1"),
    refused(
        "recipes_of_one_name",
        "would both run in runs/x/s",
        "--sweep",
        "a/s.yaml",
        "b/s.yaml",
        files=("a/s.yaml", "b/s.yaml"),
    ),
    Case(
        name="folder_with_equals",
        make=shown("--run.folder=y", "--skip-check", "--sweep", "s.yaml", files=("s.yaml",)),
        says="folder: y/s",
    ),
    refused("folder_with_percent", "holds a %", "--run.folder", "runs/50%j"),
    refused("architecture", "timm has no architecture 'swin_bas'", "--backbone.name", "swin_bas"),
    refused("batch_above_the_data", "24", "--data.batch-size", "64"),
    refused("branch_from_nowhere", "step-3 is no folder", "--run.branch-from", "nowhere/step-3"),
    Case(name="rate_that_is_no_number", make=shown("--optimizer.base-lr", "nan"), says="finite numbers", code=None),
]
