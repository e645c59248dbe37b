"""Recipes, options and probe shards: which value holds, and what is said of those that cannot."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.drills.trials.case import Case
from benchmarks.drills.trials.tiny_runs import BATCH, SWIN, make_shards, tiny_pretraining

PRETRAIN = "pretrain/main.py"


def resolved(*options: str, recipe: str = "") -> Callable[[Path], list[str]]:
    """Show the resolved recipe of a tiny pretraining with a recipe below it and options above it; imports no torch."""

    def make(folder: Path) -> list[str]:
        (folder / "r.yaml").write_text(recipe)
        tiny = ["--data.shards", make_shards(folder / "shards"), *SWIN, *BATCH, "--run.folder", "runs/x"]
        return ["launch/main.py", "pretrain", *tiny, "--recipe", "r.yaml", "--dry-run", "--skip-check", *options]

    return make


def started(*options: str, holding: tuple[str, ...] = ()) -> Callable[[Path], list[str]]:
    """Start a tiny pretraining whose run folder holds some files."""

    def make(folder: Path) -> list[str]:
        for name in holding:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return [PRETRAIN, *tiny_pretraining(folder), *options]

    return make


def probed(train: tuple[str, ...] | None, val: tuple[str, ...], *options: str) -> Callable[[Path], list[str]]:
    """Start a pretraining with probes on shards with these classes."""

    def make(folder: Path) -> list[str]:
        shards = ["--probe.train-shards", make_shards(folder / "train", classes=train)]
        shards += ["--probe.val-shards", make_shards(folder / "val", classes=val)]
        return [PRETRAIN, *tiny_pretraining(folder), *shards, *options]

    return make


def no_run(folder: Path) -> str | None:
    """Find what a refused start has left."""
    return "the refused start left a run folder" if (folder / "runs").exists() else None


def refused(name: str, make: Callable[[Path], list[str]], says: str) -> Case:
    """A start that is refused in one line, and leaves nothing."""
    return Case(name=name, make=make, says=says, code=1, check=no_run)


CASES = [
    Case(
        name="epochs_behind_a_recipes_steps",
        make=resolved("--optimizer.epochs", "2", recipe="optimizer: {steps: 20, warmup_steps: 0}"),
        says="epochs: 2.0 .* steps: null warmup_steps: 0",
    ),
    Case(
        name="steps_behind_a_recipes_epochs",
        make=resolved("--optimizer.steps=9", recipe="optimizer: {epochs: 20, warmup_epochs: 1}"),
        says="epochs: 20.0 .* steps: 9 ",
    ),
    Case(name="recipe_by_name", make=resolved("--recipe", "swin_tiny"), says="name: swin_tiny_patch4_window7_224"),
    Case(
        name="wrong_recipe_name",
        make=resolved("--recipe", "swin_tinny"),
        says="no recipe swin_tinny; did you mean swin_tiny.*vit_large",
        code=1,
    ),
    Case(
        name="home_in_an_option",
        make=resolved("--data.shards=~/shards"),
        says="/nowhere/home/shards holds no shards",
        code=1,
        environment={"HOME": "/nowhere/home"},
    ),
    Case(
        name="home_in_a_recipe",
        make=resolved(recipe="backbone: {init: ~/b}"),
        says="init: /nowhere/home/b",
        environment={"HOME": "/nowhere/home"},
    ),
    Case(
        name="plan_of_a_run",
        make=lambda folder: [PRETRAIN, "check", *tiny_pretraining(folder), "--optimizer.epochs", "2"],
        says=r"6 steps of 8 images \(2 epochs of 3 steps\)",
    ),
    Case(
        name="network_without_visible_tokens",
        make=lambda folder: (
            [PRETRAIN, "check", "--data.shards", make_shards(folder / "s"), *BATCH, "--backbone.name", "resnet50"]
        ),
        says="ResNet cannot run on visible tokens only; these can: SwinTransformer",
        code=1,
    ),
    Case(
        name="option_of_the_recipe",
        make=lambda folder: [
            PRETRAIN,
            "check",
            "--data.shards",
            make_shards(folder / "s"),
            *BATCH,
            *("--recipe", str(_written(folder / "r.yaml", "# mine\nbackbone:\n  window: 7\n"))),
            *("--backbone.name", "vit_tiny_patch16_224"),
        ],
        says=r"backbone.window: .* \(backbone.window is set in .*r.yaml, line 3\)",
        code=1,
    ),
    Case(name="rate_that_is_no_number", make=resolved("--optimizer.base-lr", "nan"), says="finite", code=None),
    refused("start_that_is_refused", started("--backbone.img-size", "100", "64"), "no multiple of the mask unit"),
    refused("probes_of_other_classes", probed(("a", "b"), ("b", "a"), "--probe.every-steps", "1"), "are not those of"),
    refused(
        "probes_without_labels", probed(None, ("a", "b"), "--probe.every-steps", "1"), "24 of 24 samples have no label"
    ),
    Case(name="probes_that_never_come", make=probed(("a", "b"), ("a", "b")), says="probe.every-steps", code=None),
    Case(name="run_folder_of_shards", make=started(holding=("runs/x/000000.tar",)), says="it holds 000000.tar", code=1),
    Case(
        name="run_folder_of_images",
        make=started(holding=("runs/x/cats/1.jpg", "runs/x/cats/2.jpg", "runs/x/dogs/1.jpg")),
        says="it holds cats/1.jpg",
        code=1,
    ),
    Case(
        name="run_folder_beside_other_files",
        make=started(holding=("runs/x/code.tar", "runs/x/plots/lr.png", "runs/x/shards/manifest.json")),
        says="report: runs/x",
    ),
]


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
