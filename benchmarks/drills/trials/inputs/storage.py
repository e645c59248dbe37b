"""Folders and disks: nothing of others is replaced, and a full disk costs what is being written, with one line."""

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from backbones.weights.handoff import make_network, write_backbone
from benchmarks.drills.trials.case import ROOT, Case
from benchmarks.drills.trials.tiny_runs import make_shards, pretraining

VIT = "vit_tiny_patch16_224"
SIZES = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
CAN_MOUNT = os.geteuid() == 0


def classifier_in(folder: Path) -> Path:
    """Write what a run hands off: a tiny classifier of two classes."""
    write_backbone(
        folder / "backbone",
        architecture=VIT,
        model_args=SIZES,
        state=make_network(VIT, {**SIZES, "num_classes": 2}).state_dict(),
        num_classes=2,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        provenance={"method": "finetune", "classes": ["a", "b"], "recipe": {}, "manifest_digest": ""},
    )
    return folder / "backbone"


def images_in(folder: Path, *names: str) -> Path:
    """Write images of noise."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name in names:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "images" / name)
    return folder / "images"


def predicting(*names: str, out: str = "out") -> Callable[[Path], list[str]]:
    """Predict images."""

    def make(folder: Path) -> list[str]:
        classifier_in(folder)
        images_in(folder, *names)
        return ["finetune/main.py", "predict", "backbone", "images", "--out", out]

    return make


def on_small_disk(make: Callable[[Path], list[str]], *, size: str, at: str = "disk") -> Callable[[Path], list[str]]:
    """Run a command where ``at`` is a disk of that size, and list what it left there."""

    def make_on_disk(folder: Path) -> list[str]:
        command = make(folder)
        (folder / "disk").mkdir()
        script = folder / "small_disk.py"
        script.write_text(
            textwrap.dedent(
                f"""\
                import ctypes, os, subprocess, sys
                libc, at = ctypes.CDLL(None, use_errno=True), os.path.abspath({at!r}).encode()
                NEW_NAMESPACE, PRIVATE_TREE = 0x20000, 0x44000
                if (libc.unshare(NEW_NAMESPACE) or libc.mount(None, b"/", None, PRIVATE_TREE, None)
                        or libc.mount(b"tmpfs", at, b"tmpfs", 0, b"size={size}")):
                    sys.exit(f"cannot mount: {{os.strerror(ctypes.get_errno())}}")
                program, *options = {command!r}
                code = subprocess.call([sys.executable, os.path.join({str(ROOT)!r}, program), *options])
                print("left:", *sorted(os.listdir(at.decode())))
                sys.exit(code)
                """
            )
        )
        return [str(script)]

    return make_on_disk


def importing(out: str) -> Callable[[Path], list[str]]:
    """Copy a backbone folder."""

    def make(folder: Path) -> list[str]:
        classifier_in(folder)
        return ["backbones/main.py", "import", "backbone", out]

    return make


def training(*more: str, count: int) -> Callable[[Path], list[str]]:
    """Pretrain with a loader worker."""

    def make(folder: Path) -> list[str]:
        make_shards(folder / "shards", count=count)
        return pretraining("shards", *more, steps=4, workers=1)

    return make


def writing_over(*names: str) -> Callable[[Path], list[str]]:
    """Write shards into a folder with files of others."""

    def make(folder: Path) -> list[str]:
        (folder / "out").mkdir()
        for name in names:
            (folder / "out" / name).write_bytes(b"precious")
        return ["data/main.py", "write", "--source", "scenes", "--count", "4", "--size", "32", "--out", "out"]

    return make


def demo_over(folder: Path) -> list[str]:
    """Run the demo into an earlier demo's folder, in which somebody put images."""
    (folder / "out" / "my images").mkdir(parents=True)
    (folder / "out" / ".demo").touch()
    return ["examples/demo.py", "--out", "out", "--quick"]


def submitting(*more: str, mode: int | None = None, link: bool = False) -> Callable[[Path], list[str]]:
    """Submit a run to this machine."""

    def make(folder: Path) -> list[str]:
        make_shards(folder / "shards", count=8)
        (folder / "run").mkdir()
        if mode is not None:
            (folder / "run").chmod(mode)
        if link:
            (folder / "elsewhere").mkdir(mode=0o700)
            (folder / "run" / "launch").symlink_to(folder / "elsewhere")
        _, *options = pretraining()
        return ["launch/main.py", "pretrain", "--cluster", "local", *options, *more]

    return make


def untouched(*names: str) -> Callable[[Path], str | None]:
    """Look whether files are as they were, and nothing was put beside them."""

    def check(folder: Path) -> str | None:
        there = {path.name for path in (folder / "out").iterdir()}
        if there != set(names):
            return f"out holds {sorted(there)}"
        changed = [name for name in names if (folder / "out" / name).read_bytes() != b"precious"]
        return f"{changed} changed" if changed else None

    return check


def holds(*patterns: str) -> Callable[[Path], str | None]:
    """Look whether files are there."""
    return lambda folder: next((f"no {pattern}" for pattern in patterns if not list(folder.glob(pattern))), None)


def long_names() -> Sequence[str]:
    """Name images as long as a file system lets them be."""
    return [f"{'ü' * 120}{ending}.png" for ending in "ab"]


CASES = [
    Case(
        name="write_over_shards_of_others",
        make=writing_over("shard-000000.tar"),
        code=1,
        says=r"out is not empty \(it holds shard-000000.tar\)",
        check=untouched("shard-000000.tar"),
    ),
    Case(
        name="write_over_notes",
        make=writing_over("notes.txt"),
        code=1,
        says="out is not empty",
        check=untouched("notes.txt"),
    ),
    Case(
        name="demo_over_images",
        make=demo_over,
        code=1,
        says="out holds my images, which might be lost; choose an empty folder with --out",
        check=holds("out/my images"),
    ),
    Case(
        name="predict_into_the_images",
        make=predicting("a.png", out="images"),
        code=1,
        says="images holds a.png, which might be lost; choose an empty folder with --out",
    ),
    Case(
        name="predict_names_that_are_too_long",
        make=predicting(*long_names(), "c.png"),
        says="3 images, 0 of them unreadable",
        check=holds("out/c.overlay.png", "out/üüü*-*.overlay.png", "out/predictions.json"),
    ),
    Case(
        name="run_folder_open_to_everybody",
        make=submitting(mode=0o777),
        code=1,
        says="run can be written to by everybody, .* chmod o-w",
        check=lambda folder: "it was submitted" if (folder / "run" / "launch").exists() else None,
    ),
    Case(
        name="launch_folder_is_a_link",
        make=submitting(link=True),
        code=1,
        says="launch is a link, and jobs run what lies there",
        check=lambda folder: "it was submitted" if list((folder / "elsewhere").iterdir()) else None,
    ),
    Case(
        name="proxy_with_a_password",
        make=submitting("--cluster.environment", "http_proxy=http://me:hunter2@proxy:3128"),
        code=None,
        says="a URL with a password or a token",
        never_says="Traceback|hunter2",
        check=lambda folder: "it was submitted" if (folder / "run" / "launch").exists() else None,
    ),
]
DISKS = [
    Case(
        name="full_disk_under_a_backbone",
        make=on_small_disk(importing("disk/backbone"), size="48k"),
        code=1,
        says=r"disk/backbone: No space left on device; free some space.*left: *$",
    ),
    Case(
        name="full_disk_under_predictions",
        make=on_small_disk(predicting(*(f"{number}.png" for number in range(8)), out="disk"), size="64k"),
        code=1,
        says=r"No space left on device; free some space.*left: (\d.overlay.png )+predictions.jsonl *$",
    ),
    Case(
        name="shared_memory_is_full",
        make=on_small_disk(training(count=8), size="512k", at="/dev/shm"),
        code=1,
        says=r"error: /dev/shm has 0.\d MiB free, .*--shm-size",
    ),
    Case(
        name="shared_memory_fills_up",
        make=on_small_disk(
            training("--data.batch-size", "32", "--data.micro-batch-size", "32", count=32), size="1030k", at="/dev/shm"
        ),
        code=1,
        says="error: no room for a micro-batch in shared memory .*--shm-size",
    ),
]
CASES += DISKS if CAN_MOUNT else []
