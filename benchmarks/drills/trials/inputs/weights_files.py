"""Backbone folders and checkpoints from anywhere: nothing in them runs or loads, and nonsense is one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbones.weights.handoff import CONFIG, WEIGHTS, make_network, write_backbone
from benchmarks.drills.trials.case import Case
from benchmarks.drills.trials.disturbed import Refusal, refusals

VIT = "vit_tiny_patch16_224"
SIZES = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}


def backbone_in(folder: Path) -> Path:
    """Write the folder of a tiny network."""
    out = folder / "backbone"
    state = make_network(VIT, {**SIZES, "num_classes": 0}).state_dict()
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    write_backbone(out, architecture=VIT, model_args=SIZES, state=state, mean=mean, std=std, provenance={})
    return out


def argument(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Change one of the network's arguments."""
    return lambda config: config["model_args"].update({name: value})


def setting(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Change one of the settings that timm reads."""
    return lambda config: config["pretrained_cfg"].update({name: value})


def into(what: str) -> Callable[[Path], list[str]]:
    """Import a sound folder into another one."""

    def make(folder: Path) -> list[str]:
        backbone_in(folder)
        target = folder / "target"
        if what == "a run":
            (target / "checkpoints").mkdir(parents=True)
            (target / "config.yaml").write_text("precious: 1\n")
        elif what == "a model of others":
            target.mkdir()
            (target / CONFIG).write_text('{"architectures": ["Bert"]}')
            (target / WEIGHTS).write_bytes(b"precious")
        elif what == "a backbone":
            backbone_in(folder).rename(target)
            backbone_in(folder)
        elif what == "an empty folder":
            target.mkdir()
        return ["backbones/main.py", "import", "backbone", "target"]

    return make


def still_there(*names: str) -> Callable[[Path], str | None]:
    """Look whether nothing was lost."""
    return lambda folder: next((f"{name} is gone" for name in names if not (folder / "target" / name).exists()), None)


def readable_by_all(folder: Path) -> str | None:
    """Look whether both files have the permissions that the umask leaves."""
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder / "target").iterdir()}
    return None if set(modes.values()) == {0o666 & ~umask} else f"permissions {modes}"


LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable")
NONSENSE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{f"loads_{name}": (argument(name, "/tmp/x"), f"'{name}' would make timm load") for name in LOADING},
    "depth_of_ten_million": (argument("depth", 10**7), "depth 10000000 is out of bounds"),
    "too_many_blocks": (argument("depth", 5000), "makes 5000 blocks, expected at most 1000"),
    "depth_in_words": (argument("depth", "two"), "cannot (make|be made)"),
    "unknown_argument": (argument("colour", "red"), "cannot (make|be made)"),
    "mean_is_no_number": (setting("mean", [float("nan")] * 3), "mean .* is none of pixels"),
    "std_is_zero": (setting("std", [0.2, 0, 0.2]), "expected numbers above 0"),
    "std_is_text": (setting("std", "abc"), "expected a list for 'std'"),
    "one_channel": (setting("mean", [0.5]), "three channels"),
    "size_of_nothing": (setting("input_size", [3, 0, 0]), "no size of images"),
    "nested_deeply": (argument("depth", [[[[[[1]]]]]]), "nested too deeply"),
    "model_args_are_a_list": (lambda config: config.update(model_args=[1]), "expected an object for 'model_args'"),
    "from_the_hub": (lambda config: config.update(architecture="hf-hub:a/b"), "timm has no architecture"),
    "another_networks": (lambda config: config.update(architecture="resnet18"), "resnet18"),
}
"""Changes of a config, and what is said of them."""


def nonsense(folder: Path) -> list[str]:
    """Import folders whose config.json holds what none should."""
    whole = (backbone_in(folder) / CONFIG).read_text()
    calls: list[Refusal] = []
    for name, (change, says) in NONSENSE.items():
        config = json.loads(whole)
        change(config)
        shutil.copytree(folder / "backbone", folder / name)
        (folder / name / CONFIG).write_text(json.dumps(config))
        calls.append(Refusal(name=name, options=("import", name, f"copy-{name}"), says=f"error: {name}.*{says}"))
    (folder / "backbone" / CONFIG).write_text("[" * 100_000 + "]" * 100_000)
    calls.append(
        Refusal(name="json", options=("import", "backbone", "copy"), says="error: backbone.*nested too deeply")
    )
    return refusals(folder, "backbones", calls)


CASES = [
    Case(
        name="configs_of_nonsense",
        make=nonsense,
        limit_s=120,
        never_says="FAULT|Traceback",
        check=lambda folder: "a copy was written" if list(folder.glob("copy*")) else None,
    ),
    Case(
        name="import_over_a_run",
        make=into("a run"),
        code=1,
        says="target holds checkpoints, config.yaml, which would be lost; choose another folder",
        check=still_there("checkpoints", "config.yaml"),
    ),
    Case(
        name="import_over_a_model_of_others",
        make=into("a model of others"),
        code=1,
        says="which would be lost",
        check=still_there(CONFIG, WEIGHTS),
    ),
    Case(name="import_over_a_backbone", make=into("a backbone"), says="wrote target", check=readable_by_all),
    Case(name="import_into_an_empty_folder", make=into("an empty folder"), says="wrote target", check=readable_by_all),
]
