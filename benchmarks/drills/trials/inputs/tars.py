"""Tars as others write them, given to `index` and `write`; and two sets of shards given to one run."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drills.trials.case import ROOT, Case
from data.shards.shard_set import open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards

Members = Iterable[tuple[str, bytes]]
Make = Callable[[Path], list[str]]
RECIPE = ROOT / "finetune/recipes/tiny_cpu.yaml"
INDEX = ["data/main.py", "index", "--source", "tars", "--out", "out"]
WRITE = ["data/main.py", "write", "--source", "tars", "--out", "out"]


def picture(number: int) -> bytes:
    """Encode a small JPEG of its own for each number."""
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def tar(members: Members, *, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Make a tar of (name, content); a name that ends in a slash is a folder's."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as file:
        for name, each in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type, info.size = (tarfile.DIRTYPE, 0) if name.endswith("/") else (tarfile.REGTYPE, len(each))
            file.addfile(info, io.BytesIO(each))
    return content.getvalue()


def samples(numbers: Iterable[int], *, label: Callable[[int], bytes] | None = None, prefix: str = "") -> Members:
    """Name images by their number, with a label each where that is asked for."""
    for number in numbers:
        yield f"{prefix}{number:04d}.jpg", picture(number)
        if label is not None:
            yield f"{prefix}{number:04d}.cls", label(number)


def files(contents: dict[str, bytes], command: list[str]) -> Make:
    """Write files below `tars`, and give the command."""

    def make(folder: Path) -> list[str]:
        for name, content in contents.items():
            (folder / "tars" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tars" / name).write_bytes(content)
        return command

    return make


def holds(labels: list[int], classes: tuple[str, ...] | None, *, out: str = "out") -> Callable[[Path], str | None]:
    """Check what was written: the labels, in any order, and the names of the classes."""

    def check(folder: Path) -> str | None:
        shards = open_shards(folder / out)
        found = sorted(shards.labels().tolist()), shards.classes
        return None if found == (labels, classes) else f"labels and classes are {found}, not {(labels, classes)}"

    return check


def _two_sets(*, classes: tuple[tuple[str, ...], ...], program: str, options: list[str]) -> Make:
    def make(folder: Path) -> list[str]:
        for name, names in zip(("a", "b"), classes, strict=True):
            new = (NewSample(source="", members={"jpg": picture(n)}, label=n % len(names)) for n in range(48))
            write_shards(new, out=folder / name, classes=names, limits=ShardLimits(samples=20))
        recipe = ROOT / "benchmarks/drills/resume.yaml"
        return [
            program,
            "--data.shards",
            "a",
            "b",
            *options,
            *(["--recipe", str(recipe)] if "pretrain" in program else []),
        ]

    return make


_NAMED = tar(samples(range(3), label=lambda n: [b"dog", b"cat", b"dog"][n]))
_PUBLISHED = {
    **{
        f"imagenet1k-train-{n:04d}.tar": tar(samples(range(2 * n, 2 * n + 2), label=lambda n: b"%d" % (n % 2)))
        for n in range(2)
    },
    "imagenet1k-validation-00.tar": tar(samples([7], label=lambda _: b"1")),
}
_INFO = json.dumps(
    {"splits": {"train": {"filenames": sorted(_PUBLISHED)[:2]}, "validation": {"filenames": sorted(_PUBLISHED)[2:]}}}
)
_FOUR = {f"shard-{n:06d}.tar": tar(samples([n], label=lambda n: b"%d" % n)) for n in range(4)}
_IMG2DATASET = {
    "00000.tar": tar(
        (f"{n:09d}.{name}", content)
        for n in range(3)
        for name, content in (
            ("jpg", picture(n)),
            ("txt", b"a dog"),
            ("json", json.dumps({"caption": "a dog", "key": str(n), "status": "success"}).encode()),
        )
    ),
    "00000.parquet": b"PAR1",
    "00000_stats.json": b'{"count": 3}',
}
_TWO = samples(range(2), label=lambda n: b"%d" % n)
_TWO = tuple(_TWO)


def _ours(*splits: str) -> Make:
    """Write shards with names of classes for each split, and give the command that reads their folder."""

    def make(folder: Path) -> list[str]:
        for split in splits:
            new = (NewSample(source="", members={"jpg": picture(n)}, label=n % 2) for n in range(4))
            write_shards(new, out=folder / "tars" / split, classes=("cat", "dog"), limits=ShardLimits())
        return WRITE

    return make


def _under_another_default(folder: Path) -> list[str]:
    """Write shards whose plan has the bound of pixels that was the default before, and give the command again."""
    command = files({"a.tar": tar(samples(range(2)))}, WRITE)(folder)
    subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    plan = json.loads((folder / "out/plan.json").read_text())
    (folder / "out/plan.json").write_text(json.dumps({**plan, "max_pixels": 178_956_970}))
    return command


_JOINED = {
    "x.tar": tar((f"{n}.jpg", picture(n)) for n in range(2))
    + tar((f"{n}.{kind}", each) for n in range(2) for kind, each in (("cls", b"%d" % n), ("jpg", picture(n + 2))))
}

CASES = [
    Case(name="written_under_another_default", make=_under_another_default, says="out is complete already"),
    Case(name="joined_with_and_without_labels", make=files(_JOINED, INDEX), check=holds([-1, -1, 0, 1], ("0", "1"))),
    Case(name="written_train_alone", make=_ours("train"), check=holds([0, 0, 1, 1], ("cat", "dog"))),
    Case(
        name="written_three_splits",
        make=_ours("train", "val", "test"),
        says="the shards of test are left alone: --source tars/test",
        check=holds([0, 0, 1, 1], ("cat", "dog"), out="out/val"),
    ),
    Case(
        name="published_imagenet_is_not_mixed_by_index",
        make=files({**_PUBLISHED, "_info.json": _INFO.encode()}, INDEX),
        code=1,
        says=r"train and val: choose one with --pattern 'imagenet1k-train-\*.tar' \(2 tars\), --pattern 'imag",
    ),
    Case(
        name="published_imagenet_is_written_as_two_splits",
        make=files({**_PUBLISHED, "_info.json": _INFO.encode()}, WRITE),
        check=lambda folder: (
            holds([0, 0, 1, 1], ("0", "1"), out="out/train")(folder) or holds([1], ("0", "1"), out="out/val")(folder)
        ),
    ),
    Case(
        name="splits_by_names_alone",
        make=files(_PUBLISHED, [*INDEX, "--pattern", "imagenet1k-train-{0000..0001}.tar"]),
        check=holds([0, 0, 1, 1], ("0", "1")),
    ),
    Case(name="class_names_in_cls", make=files({"a.tar": _NAMED}, INDEX), check=holds([0, 1, 1], ("cat", "dog"))),
    Case(
        name="class_names_in_cls_with_a_list",
        make=files({"a.tar": _NAMED, "classes.txt": b"dog\ncat\ncow\n"}, WRITE),
        check=holds([0, 0, 1], ("dog", "cat", "cow")),
    ),
    Case(
        name="class_names_that_are_not_in_the_list",
        make=files({"a.tar": _NAMED, "classes.txt": b"dog\ncow\n"}, INDEX),
        code=1,
        says="1 labels are not among the 2 class names given, such as 'cat'",
    ),
    Case(
        name="labels_with_decimals",
        make=files({"a.tar": tar(samples(range(3), label=lambda n: b"%d.0" % n))}, INDEX),
        check=holds([0, 1, 2], ("0", "1", "2")),
    ),
    Case(
        name="labels_in_json",
        make=files(
            {"a.tar": tar([*samples(range(2)), ("0000.json", b'{"label": 1}'), ("0001.json", b'{"label": 0}')])}, INDEX
        ),
        check=holds([0, 1], ("0", "1")),
    ),
    Case(
        name="labels_that_count_from_one",
        make=files({"a.tar": tar(samples(range(2), label=lambda n: b"%d" % (n + 1))), "classes.txt": b"x\ny\n"}, INDEX),
        code=1,
        says="class number 2, but only 2 class names were given; if they count from 1, say --first-class 1",
    ),
    Case(
        name="labels_that_count_from_one_said",
        make=files(
            {"a.tar": tar(samples(range(2), label=lambda n: b"%d" % (n + 1))), "classes.txt": b"x\ny\n"},
            [*WRITE, "--first-class", "1"],
        ),
        check=holds([0, 1], ("x", "y")),
    ),
    Case(
        name="labels_that_count_from_one_without_names",
        make=files({"a.tar": tar(samples(range(2), label=lambda n: b"%d" % (n + 1)))}, INDEX),
        says="no sample has class 0, the lowest is 1",
    ),
    Case(
        name="members_that_are_not_neighbours",
        make=files({"a.tar": tar([*_TWO[::2], *_TWO[1::2]])}, INDEX),
        check=holds([0, 1], ("0", "1")),
    ),
    Case(
        name="dots_in_keys",
        make=files({"a.tar": tar((name.replace("00", "0.0."), each) for name, each in _TWO)}, INDEX),
        code=1,
        says=r"no sample with an image .*\.0\.01\.jpg",
    ),
    Case(
        name="class_folders_in_a_tar",
        make=files({"a.tar": tar([("cat/1.jpg", picture(1)), ("dog/1.jpg", picture(2))])}, INDEX),
        says=r"lie in 2 folders \(cat, dog, ...\), .* if these are classes, unpack the tars",
        check=holds([-1, -1], None),
    ),
    Case(
        name="gzip_under_the_name_of_a_tar",
        make=files({"a.tar": gzip.compress(tar(_TWO))}, INDEX),
        code=1,
        says=r"compressed \(gzip\).* unpack it",
    ),
    Case(
        name="tar_gz", make=files({"a.tar.gz": gzip.compress(tar(_TWO))}, WRITE), code=1, says="compressed tars.*gunzip"
    ),
    Case(
        name="joined_tars",
        make=files({"a.tar": tar(samples([0], label=lambda _: b"0")) + tar(samples([1], label=lambda _: b"1"))}, INDEX),
        check=holds([0, 1], ("0", "1")),
    ),
    Case(
        name="bytes_after_the_end",
        make=files({"a.tar": tar(_TWO) + b"x" * 1000}, INDEX),
        code=1,
        says="what follows at byte .* is no tar: if nothing is lost, cut it off with `truncate -s",
    ),
    Case(
        name="braces_as_the_source",
        make=files(_FOUR, [*INDEX[:3], "tars/shard-{000000..000002}.tar", *INDEX[4:]]),
        check=holds([0, 1, 2], ("0", "1", "2")),
    ),
    Case(
        name="braces_as_the_source_of_write",
        make=files(_FOUR, [*WRITE[:3], "tars/shard-{000000..000002}.tar", *WRITE[4:]]),
        check=holds([0, 1, 2], ("0", "1", "2")),
    ),
    Case(
        name="braces_that_name_a_missing_tar",
        make=files(_FOUR, [*INDEX, "--pattern", "shard-{000000..000007}.tar"]),
        code=1,
        says="4 of the 8 names of .* match no file, such as shard-000004.tar",
    ),
    Case(
        name="one_tar_as_the_source",
        make=files(_FOUR, [*WRITE[:3], "tars/shard-000001.tar", *WRITE[4:]]),
        check=holds([1], ("0", "1")),
    ),
    Case(
        name="folders_of_tars",
        make=files({f"{split}/{n}.tar": tar(samples([n])) for split in ("train", "val") for n in range(2)}, INDEX),
        code=1,
        says=r"choose one with --source tars/train \(2 tars\), --source tars/val \(2 tars\)",
    ),
    Case(
        name="folders_of_tars_written",
        make=files({f"{split}/{n}.tar": tar(samples([n])) for split in ("train", "val") for n in range(2)}, WRITE),
        check=lambda folder: (
            holds([-1, -1], None, out="out/train")(folder) or holds([-1, -1], None, out="out/val")(folder)
        ),
    ),
    Case(name="img2dataset", make=files(_IMG2DATASET, INDEX), check=holds([-1] * 3, None)),
    Case(name="img2dataset_written", make=files(_IMG2DATASET, WRITE), check=holds([-1] * 3, None)),
    *(
        Case(
            name=f"{name}_of_tar",
            make=files(
                {
                    "a.tar": tar(
                        [("./", b""), ("./d/", b""), *samples(range(2), prefix=prefix, label=lambda n: b"%d" % n)],
                        form=form,
                    )
                },
                WRITE,
            ),
            check=holds([0, 1], ("0", "1")),
        )
        for name, form, prefix in (
            ("long_names_in_gnu", tarfile.GNU_FORMAT, "./d/" + "x" * 150),
            ("long_names_in_pax", tarfile.PAX_FORMAT, "./d/" + "ü" * 150),
            ("dots_and_folders", tarfile.USTAR_FORMAT, "./d/"),
        )
    ),
    Case(
        name="the_same_keys_twice",
        make=files({"a.tar": tar([*_TWO, *_TWO]), "b.tar": tar(_TWO)}, WRITE),
        check=holds([0, 0, 0, 1, 1, 1], ("0", "1")),
        says="numbered anew",
    ),
    Case(
        name="an_empty_tar_beside",
        make=files({"a.tar": tar([]), "b.tar": tar(_TWO)}, WRITE),
        check=holds([0, 1], ("0", "1")),
    ),
    Case(name="empty_tars_alone", make=files({"a.tar": tar([])}, WRITE), code=1, says="no sample with an image"),
    Case(name="a_truncated_tar", make=files({"a.tar": tar(_TWO)[:1500]}, WRITE), code=1, says="a.tar .*truncated"),
    Case(
        name="two_sets_from_relative_paths",
        make=_two_sets(
            classes=(("x", "y"), ("p", "q", "r")),
            program="pretrain/main.py",
            options=["--run.folder", "run", "--optimizer.steps", "2", "--data.workers", "0"],
        ),
        check=lambda folder: None if list((folder / "run" / "checkpoints").iterdir()) else "no checkpoint",
    ),
    Case(
        name="two_labelled_sets_of_other_classes",
        make=_two_sets(
            classes=(("x", "y"), ("p", "q", "r")),
            program="finetune/main.py",
            options=[
                "--recipe",
                str(RECIPE),
                "--backbone.name",
                "resnet18",
                "--val-shards",
                "a",
                "--run.folder",
                "run",
            ],
        ),
        code=1,
        says="the 3 classes of b are not the 2 of a",
    ),
]
