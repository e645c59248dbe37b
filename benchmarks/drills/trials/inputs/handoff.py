"""Weights from elsewhere and for elsewhere: converted rightly or refused, and what a folder says of itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from backbones.weights.handoff import read_state, write_backbone
from benchmarks.drills.trials.case import Case
from benchmarks.drills.trials.tiny_runs import BATCH, SHAPE, SHORT, make_shards

IMPORT = ("backbones/main.py", "import", "weights.pth", "backbone")
SMALL: dict[str, Any] = {"img_size": (64, 64), "window_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
SWIN, TWINS, BEIT = "swin_tiny_patch4_window7_224", "twins_svt_small", "beit_base_patch16_224"


def saved(content: Callable[[], Any], *options: str) -> Callable[[Path], list[str]]:
    """Import a file with this content."""

    def make(folder: Path) -> list[str]:
        torch.save(content(), folder / "weights.pth")
        return [*IMPORT, *options]

    return make


def small_swin() -> dict[str, Tensor]:
    """The weights of a small Swin."""
    return timm.create_model(SWIN, num_classes=0, **SMALL).state_dict()


def greenmim_twins(*, complete: bool = True) -> dict[str, Any]:
    """A Twins with the kernels of sparse convolutions."""
    state = timm.create_model(TWINS, num_classes=0).state_dict()
    for name in [
        name for name in state if name.endswith(".sr.weight") or (".proj.weight" in name and "embeds" in name)
    ]:
        state[name] = state[name].permute(0, 2, 3, 1).contiguous() if "embeds.0" not in name else state[name]
    if not complete:
        del state["norm.weight"]
    return {"model": {f"encoder.{name}": value for name, value in state.items()}}


def simmim_vit() -> dict[str, Any]:
    """A ViT whose blocks share one table."""
    state = timm.create_model(BEIT, num_classes=0).state_dict()
    tables = [name for name in state if name.endswith("bias_table")]
    state["rel_pos_bias.relative_position_bias_table"] = state[tables[0]]
    state |= {name.replace("fc_norm", "norm"): value for name, value in state.items() if "fc_norm" in name}
    kept = {name: value for name, value in state.items() if name not in tables and "fc_norm" not in name}
    return {"model": {f"encoder.{name}": value for name, value in kept.items()}}


def says_of_itself(**expected: Any) -> Callable[[Path], str | None]:
    """Look for values in the provenance of the imported folder."""

    def check(folder: Path) -> str | None:
        provenance = config_of(folder / "backbone")["provenance"]
        wrong = {key: provenance.get(key) for key, value in expected.items() if provenance.get(key) != value}
        return f"provenance says {wrong}" if wrong else None

    return check


def fp32_alone(folder: Path) -> str | None:
    """Look for weights in other numbers than fp32."""
    kinds = {value.dtype for value in read_state(folder / "backbone").values()}
    return None if kinds == {torch.float32} else f"weights are {kinds}"


def finetuned(*options: str) -> Callable[[Path], list[str]]:
    """Fine-tune a small Swin at 160 px, where window 4 does not divide the grids."""

    def make(folder: Path) -> list[str]:
        shards = ["--data.shards", make_shards(folder / "train"), "--val-shards", make_shards(folder / "val")]
        swin = ["--backbone.name", SWIN, "--backbone.img-size", "160", "160", "--backbone.window", "4"]
        crop = ["--evaluation.crop-ratio", "0.8", "--run.folder", "run", "--backbone.embed-dim", "16", *SHAPE]
        return ["finetune/main.py", *shards, *swin, *crop, *BATCH, *SHORT, *options]

    return make


def for_timm(windows: str) -> Callable[[Path], str | None]:
    """Look for what timm reads in a fine-tuned folder, and what its provenance says of windows."""

    def check(folder: Path) -> str | None:
        config = config_of(folder / "run" / "backbone")
        crop, names = config["pretrained_cfg"]["crop_pct"], config.get("label_names")
        if (crop, names) != (0.8, ["ant", "bee"]):
            return f"crop_pct {crop}, label_names {names}"
        return None if windows in config["provenance"]["windows"] else f"windows: {config['provenance']['windows']}"

    return check


def measured_elsewhere(folder: Path) -> list[str]:
    """Measure a classifier on shards with its classes in another order."""
    write_backbone(
        folder / "b",
        architecture=SWIN,
        model_args=SMALL,
        state=timm.create_model(SWIN, num_classes=2, **SMALL).state_dict(),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_classes=2,
        provenance={"classes": ["ant", "bee"]},
    )
    val = make_shards(folder / "val", classes=("bee", "ant"))
    return ["finetune/main.py", "evaluate", "b", "--val-shards", val, "--run.folder", "run"]


def config_of(folder: Path) -> Any:
    """Read a folder's config."""
    return json.loads((folder / "config.json").read_text())


CASES = [
    Case(name="greenmim_twins", make=saved(greenmim_twins), check=says_of_itself(layout="greenmim-twins")),
    Case(
        name="greenmim_twins_in_parts",
        make=saved(lambda: greenmim_twins(complete=False)),
        says="do not fit twins_svt_small",
        never_says="--partial|Traceback",
        code=1,
    ),
    Case(name="simmim_vit", make=saved(simmim_vit), check=says_of_itself(layout="simmim-vit")),
    Case(
        name="numbers_of_numpy",
        make=saved(lambda: {"model": small_swin(), "best": np.float64(0.8), "kind": np.dtype("f4")}),
        says="wrote backbone",
    ),
    Case(name="half", make=saved(lambda: {k: v.half() for k, v in small_swin().items()}), check=fp32_alone),
    Case(name="size_not_in_the_file", make=saved(small_swin), says="16x16 px is assumed; --img-size"),
    Case(name="size_that_is_told", make=saved(small_swin, "--img-size", "64", "64"), never_says="assumed|Traceback"),
    Case(
        name="windows_that_timm_pads",
        make=finetuned(),
        says="both agree at 128 or 256 px",
        check=for_timm("both agree at 128 or 256 px"),
    ),
    Case(
        name="windows_as_timm_has_them",
        make=finetuned("--backbone.windows", "timm"),
        never_says="both agree|Traceback",
        check=for_timm("timm"),
    ),
    Case(
        name="classes_in_another_order", make=measured_elsewhere, says="class 'bee' is number 0 in val-shards", code=1
    ),
]
