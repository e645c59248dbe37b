"""`data/main.py write`: from any source of images to shards."""

import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data.commands.class_order import class_mix
from data.commands.progress import watch
from data.images.preparation import Preparation
from data.loading.loader import open_shards
from data.shards.manifest import Manifest, read_manifest
from data.sources.formats import SCENES, SourceOptions, detect_format, open_source
from data.sources.source import Scenes, Selection, Source, prepared, split_off
from data.writing.config import Format, Write
from data.writing.journal import Plan, check_folder
from data.writing.new_sample import NewSample, Rejected
from data.writing.writer import ShardLimits, resume_shards
from engine.errors import UserError

logger = logging.getLogger(__name__)

# What only some formats read: given with another one, it is refused.
READ_BY: Mapping[str, tuple[Format, ...]] = {
    "images": ("table", "coco"),
    "val_labels": ("imagenet",),
    "path_column": ("table",),
    "label_column": ("table",),
    "pattern": ("webdataset",),
    "classes": ("imagenet", "labels", "table", "webdataset"),
    "count": ("scenes",),
}
# What changes nothing in the shards: it may be another when a killed command is started again.
NOT_IN_PLAN = ("source", "out", "format", "processes", "max_bad")


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One folder to write."""

    name: str
    out: Path
    selection: Selection
    plan: Plan


def run_write(options: Write, *, console: Console) -> None:
    """Write the shards that are asked for, or the rest of them.

    Raises:
        UserError: the source cannot be understood, the folder holds something else, or too many files are unreadable.
    """
    with tempfile.TemporaryDirectory(prefix="shard-index-") as index_folder:
        parts = _parts(options, index_folder=Path(index_folder), console=console)
        complete = {part.name: check_folder(part.out, plan=part.plan) for part in parts}
        for part in parts:
            if complete[part.name]:
                console.print(f"{part.out} is complete already", highlight=False, markup=False, soft_wrap=True)
            manifest = read_manifest(part.out) if complete[part.name] else _write_part(part, options, console=console)
            say_written(manifest, folder=part.out, console=console)


def say_written(manifest: Manifest, *, folder: Path, console: Console) -> None:
    """Say in a line what a folder holds, and warn of what training suffers from."""
    size_mib = sum(shard.size_bytes for shard in manifest.shards) / 2**20
    classes = "no classes" if manifest.classes is None else f"{len(manifest.classes)} classes"
    console.print(
        f"{folder}: {manifest.num_samples} samples in {len(manifest.shards)} shards, {classes}, {size_mib:.1f} MiB, "
        f"digest {manifest.digest[:12]}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    shards = open_shards(folder)
    mix = class_mix(shards.labels(), sizes=shards.sizes)
    if mix is not None and mix.is_sorted:
        console.print(f"warning: {mix.warning}", highlight=False, markup=False, soft_wrap=True)


def _write_part(part: _Part, options: Write, *, console: Console) -> Manifest:
    total = len(part.selection.numbers)

    def samples_from(position: int) -> Iterator[NewSample | Rejected]:
        if position:
            console.print(f"{part.out}: going on after sample {position} of {total}", markup=False, soft_wrap=True)
        samples = prepared(part.selection, processes=options.processes, start=position)
        return watch(samples, total=total, name=f"writing {part.name}", console=console, start=position)

    limits = ShardLimits(
        samples=options.samples_per_shard, size_bytes=options.shard_mib * 2**20, max_bad=options.max_bad
    )
    classes = part.selection.source.classes
    return resume_shards(samples_from, out=part.out, plan=part.plan, classes=classes, limits=limits)


def _parts(options: Write, *, index_folder: Path, console: Console) -> list[_Part]:
    format_ = _format(options, console=console)
    selections = _selections(options, format_=format_, index_folder=index_folder)
    selections = {name: selection for name, selection in selections.items() if len(selection.numbers)}
    source = options.source if format_ == SCENES else str(Path(options.source).resolve())
    asked = {name: value for name, value in vars(options).items() if name not in NOT_IN_PLAN}
    asked = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in asked.items()}
    return [
        _Part(
            name=name,
            out=options.out / name if len(selections) > 1 else options.out,
            selection=selection,
            plan={"source": source, "format": format_, **asked, "the list of samples": selection.digest()},
        )
        for name, selection in selections.items()
    ]


def _format(options: Write, *, console: Console) -> Format:
    """Return the source's format, found out where it is not given; refuse options that it does not read."""
    found = options.format
    if found == "auto":
        found = SCENES if options.source == SCENES else detect_format(Path(options.source))
        if found != SCENES:
            console.print(
                f"{options.source} is taken as --format {found}", highlight=False, markup=False, soft_wrap=True
            )
    defaults = {item.name: item.default for item in dataclasses.fields(Write)}
    for name, formats in READ_BY.items():
        if getattr(options, name) != defaults[name] and found not in formats:
            word = f"--{name.replace('_', '-')}"
            raise UserError(f"{word} is read with --format {' or '.join(formats)}, but {options.source} is {found}")
    return found


def _selections(options: Write, *, format_: Format, index_folder: Path) -> dict[str, Selection]:
    """Return what goes into which split."""
    sources = _sources(options, format_=format_, index_folder=index_folder)
    if "val" in sources and options.val_fraction and format_ != SCENES:
        raise UserError(f"{options.source} has a val split already: leave --val-fraction out")
    if len(sources) > 1:
        return {
            name: split_off(source, fraction=0.0, seed=options.seed, shuffle=options.shuffle)[0]
            for name, source in sources.items()
        }
    train, val = split_off(sources["train"], fraction=options.val_fraction, seed=options.seed, shuffle=options.shuffle)
    return {"train": train, "val": val}


def _sources(options: Write, *, format_: Format, index_folder: Path) -> Mapping[str, Source]:
    if format_ == SCENES:
        held = round(options.count * options.val_fraction)
        train = Scenes(seed=options.seed, first=0, count=options.count - held, size=options.size or 128)
        return {"train": train, "val": dataclasses.replace(train, first=train.count, count=held)}
    preparation = Preparation(
        check=options.check, resize=options.size, quality=options.quality, max_pixels=options.max_pixels
    )
    source_options = SourceOptions(
        source=Path(options.source),
        images=options.images,
        val_labels=options.val_labels,
        path_column=options.path_column,
        label_column=options.label_column,
        pattern=options.pattern,
        classes=options.classes,
        preparation=preparation,
        index_folder=index_folder,
        processes=options.processes,
    )
    return open_source(source_options, format=format_)
