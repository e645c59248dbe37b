"""The data program: write shards, index those of others, verify and show them."""

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from data.decode import MAX_PIXELS
from data.loader import open_shards
from data.manifest import Manifest
from data.shard_scan import index_shards
from data.show import contact_sheet, write_contact_sheet
from data.sources import Preparation, Scenes, Selection, find_images, prepared, shuffled, split_off
from data.verify import Findings, class_counts, verify
from data.writer import ShardLimits, prepare_folder, write_shards
from engine.errors import one_line_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCENES = "scenes"
LINE_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Write:
    """Write images into shards: OUT/train and OUT/val where some are held out, else OUT itself."""

    source: str
    """Folder of images (class subfolders, train/ and val/ of them, or flat), or `scenes` for generated pictures."""
    out: Path
    """Folder to write to; must not hold anything else."""
    val_fraction: float = 0.0
    """Share of the images to hold out, the same of every class, in [0, 1)."""
    seed: int = 0
    """Seed of order, split and scenes."""
    size: int | None = None
    """Side of the scenes in pixels (default 128); for images, shrink the shorter side to this (default: keep the files' bytes)."""
    count: int = 4000
    """How many scenes."""
    check: Literal["decode", "header"] = "decode"
    """Decode every image before it is written, or only read its header."""
    max_pixels: int = MAX_PIXELS
    """Images that claim more pixels are left out."""
    max_bad: int = 100
    """Stop when more files than this cannot be read; those left out are listed in OUT/bad.jsonl."""
    samples_per_shard: int = 10_000
    """Most samples of a shard."""
    shard_mib: int = 256
    """A shard that has grown past this many MiB is closed."""
    processes: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    """Processes that read, check and draw; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val-fraction must lie in [0, 1), got {self.val_fraction}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.size is not None and self.size < 32:
            raise ValueError(f"size must be at least 32 pixels, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class Index:
    """Make manifest and index files for WebDataset tars that were written elsewhere."""

    source: Path
    """Folder with the tars; nothing is written there unless it is also OUT."""
    out: Path
    """Folder for manifest and index files; may be the one with the tars, but is never guessed."""
    pattern: str = "*.tar"
    """Which tars, for example `train-*.tar`."""
    classes: Path | None = None
    """Class names in label order (JSON list or one a line); default: classes.json or classes.txt beside the tars."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check sizes, digests, images, keys and labels; exit code 1 where something is broken."""

    shards: Path
    """Folder with the manifest."""
    decode: int = 1000
    """How many images to decode, spread over all."""
    full: bool = False
    """Decode all images."""
    digests: bool = True
    """Compare every tar with its digest."""
    json_out: Path | None = None
    """Also write the findings to this file."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draw a contact sheet and count the classes."""

    shards: Path
    """Folder with the manifest."""
    out: Path = Path("contact_sheet.png")
    """PNG file to write."""
    count: int = 48
    """How many pictures."""
    columns: int = 8
    """How many in a row."""
    seed: int = 0
    """Which ones."""


COMMANDS = {"write": Write, "index": Index, "verify": Verify, "show": Show}


@one_line_errors
def main() -> None:
    """Run the subcommand that the command line names."""
    console = Console()
    options = tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__)
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    try:
        match options:
            case Write():
                _write(options, console=console)
            case Index():
                _index(options, console=console)
            case Verify():
                _verify(options, console=console)
            case Show():
                _show(options, console=console)
    except OSError as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(130)


def _write(options: Write, *, console: Console) -> None:
    splits = {name: part for name, part in _selections(options).items() if len(part.numbers)}
    outs = {name: options.out / name if len(splits) > 1 else options.out for name in splits}
    for folder in outs.values():
        prepare_folder(folder)
    limits = ShardLimits(
        samples=options.samples_per_shard, size_bytes=options.shard_mib * 2**20, max_bad=options.max_bad
    )
    for name, part in splits.items():
        samples = prepared(part, processes=options.processes)
        watched = _watch(samples, total=len(part.numbers), name=f"writing {name}", console=console)
        manifest = write_shards(watched, out=outs[name], classes=part.source.classes, limits=limits)
        _say_written(manifest, folder=outs[name], console=console)


def _selections(options: Write) -> dict[str, Selection]:
    """Return what goes into which split."""
    if options.source == SCENES:
        held = round(options.count * options.val_fraction)
        train = Scenes(seed=options.seed, first=0, count=options.count - held, size=options.size or 128)
        val = dataclasses.replace(train, first=train.count, count=held)
        return {"train": shuffled(train, seed=options.seed), "val": shuffled(val, seed=options.seed)}
    preparation = Preparation(check=options.check, resize=options.size, max_pixels=options.max_pixels)
    found = find_images(Path(options.source), preparation=preparation)
    if "val" in found:
        if options.val_fraction:
            raise ValueError(f"{options.source} has a val folder already: leave --val-fraction out")
        return {name: shuffled(source, seed=options.seed) for name, source in found.items()}
    train, val = split_off(found["train"], fraction=options.val_fraction, seed=options.seed)
    return {"train": train, "val": val}


def _index(options: Index, *, console: Console) -> None:
    classes = _class_names(options)
    manifest, ignored = index_shards(options.source, out=options.out, pattern=options.pattern, classes=classes)
    for reason, count in ignored.most_common(10):
        console.print(f"passed over {count} x {reason}", highlight=False, markup=False)
    _say_written(manifest, folder=options.out, console=console)


def _class_names(options: Index) -> list[str] | None:
    beside = [options.source / name for name in ("classes.json", "classes.txt")]
    path = options.classes or next((path for path in beside if path.is_file()), None)
    if path is None:
        return None
    text = path.read_text()
    try:
        names = json.loads(text) if path.suffix == ".json" else text.split("\n")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(names, list):
        raise ValueError(f"{path} must hold a list of class names, got a {type(names).__name__}")
    return [str(name).strip() for name in names if str(name).strip()]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _verify(options: Verify, *, console: Console) -> None:
    findings = verify(options.shards, num_decoded=None if options.full else options.decode, digests=options.digests)
    if options.json_out is not None:
        options.json_out.write_text(json.dumps({"passed": findings.passed, **dataclasses.asdict(findings)}, indent=1))
    _say_findings(findings, console=console)
    if not findings.passed:
        raise ValueError(f"{options.shards} has {len(findings.problems)} problems, the first: {findings.problems[0]}")


def _show(options: Show, *, console: Console) -> None:
    shards = open_shards(options.shards)
    write_contact_sheet(
        options.out, contact_sheet(shards, count=options.count, columns=options.columns, seed=options.seed)
    )
    if shards.classes is not None:
        console.print(_count_table(class_counts(shards)))
    console.print(f"{shards.num_samples} samples in {len(shards.sizes)} shards; contact sheet in {options.out}")


def _say_written(manifest: Manifest, *, folder: Path, console: Console) -> None:
    size_mib = sum(shard.size_bytes for shard in manifest.shards) / 2**20
    classes = "no labels" if manifest.classes is None else f"{len(manifest.classes)} classes"
    console.print(
        f"{folder}: {manifest.num_samples} samples in {len(manifest.shards)} shards, {classes}, {size_mib:.1f} MiB, "
        f"digest {manifest.digest[:12]}",
        highlight=False,
        soft_wrap=True,
    )


def _say_findings(findings: Findings, *, console: Console) -> None:
    if findings.counts:
        console.print(_count_table(findings.counts))
    for text in findings.warnings:
        console.print(f"warning: {text}", markup=False, soft_wrap=True)
    for text in findings.problems:
        console.print(f"problem: {text}", markup=False, soft_wrap=True)
    console.print(
        f"{findings.num_samples} samples in {findings.num_shards} shards ({findings.size_bytes / 2**20:.1f} MiB): "
        f"{findings.num_digests} digests compared, {findings.num_decoded} images decoded, {len(findings.problems)} problems",
        soft_wrap=True,
    )


def _count_table(counts: dict[str, int]) -> Table:
    table = Table("class", "name", "samples")
    for label, (name, count) in enumerate(counts.items()):
        table.add_row(str(label), Text(name), str(count))
    return table


def _watch(items: Iterable[T], *, total: int, name: str, console: Console) -> Iterator[T]:
    """Pass items on and show how many a second, and how long is left: a bar on a terminal, else a line now and then."""
    if not console.is_terminal:
        yield from _watch_in_lines(items, total=total, name=name, console=console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, total=total, description=name)


def _watch_in_lines(items: Iterable[T], *, total: int, name: str, console: Console) -> Iterator[T]:
    start = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= LINE_EVERY_S or done == total:
            said = now
            speed = done / max(now - start, 1e-6)
            console.print(
                f"{name}: {done} of {total}, {speed:.0f} images/s, {(total - done) / speed:.0f} s left", highlight=False
            )


class _Speed(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")
