"""`data/main.py write`: from any source of images to shards."""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data.commands.class_counts import class_counts, split_table
from data.commands.class_order import class_mix
from data.commands.console import say, start_console, watch
from data.commands.stored_objects import read_objects
from data.shards.manifest import Manifest, read_manifest
from data.shards.shard_set import open_shards
from data.sources.config import AUTO, Write
from data.sources.formats import SourceFormat, check_options, find_source, source_format
from data.sources.image_folder import ImageFiles
from data.sources.source import Selection, prepared, split_off
from data.sources.trees.passed_over import passed_over
from data.writing.journal import Plan, Rejected, check_folder
from data.writing.writer import NewSample, ShardLimits, resume_shards
from engine.errors import UserError

NOT_IN_PLAN = ("source", "out", "format", "processes", "max_bad")
"""What changes nothing in the shards: it may be another when a killed command is started again."""

MOST_NAMES = 40


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One folder to write."""

    name: str
    out: Path
    selection: Selection
    plan: Plan


def run_write(options: Write) -> None:
    """Write the shards that are asked for, or the rest of them.

    Raises:
        UserError: the source cannot be understood, the folder holds something else, or too many files are unreadable.
    """
    console = start_console()
    with tempfile.TemporaryDirectory(prefix="shard-index-") as index_folder:
        parts = _parts(options, index_folder=Path(index_folder), console=console)
        # All folders are looked at before the first is written, which may take hours.
        complete = {part.name: check_folder(part.out, plan=part.plan) for part in parts}
        for part in parts:
            if complete[part.name]:
                say(console, f"{part.out} is complete already")
            manifest = read_manifest(part.out) if complete[part.name] else _write_part(part, options, console=console)
            say_written(manifest, folder=part.out, console=console)
        _say_content(parts, console=console)
        _say_passed_over(options, parts=parts, console=console)


def _say_content(parts: Sequence[_Part], *, console: Console) -> None:
    """Show the classes with the samples or objects of each split, and say what training will leave out of these."""
    opened = {part.name: open_shards(part.out) for part in parts}
    objects = {name: read_objects(shards) for name, shards in opened.items()}
    names = next((shards.classes for shards in opened.values() if shards.classes), None)
    if names is not None:
        counts = {name: class_counts(shards) for name, shards in opened.items()}
        if not any(counts.values()):
            counts = {f"objects in {name}": stored.counts for name, stored in objects.items()}
        _say_classes(names, counts=counts, console=console)
    for part in parts:
        if part.plan["format"] != "coco" and (text := str(objects[part.name].faults)):  # COCO's are said when read
            say(console, f"warning: {part.out}: {text}")


def _say_classes(names: Sequence[str], *, counts: Mapping[str, Mapping[str, int]], console: Console) -> None:
    """Show the classes with their counts, or name them where nothing is counted."""
    if any(counts.values()):
        console.print(split_table(names, splits=counts))
    else:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        say(console, f"classes: {', '.join(names[:MOST_NAMES])}{more}")


def _say_passed_over(options: Write, *, parts: Sequence[_Part], console: Console) -> None:
    """Say which files in the source's folder went into no shard."""
    sources = list({id(part.selection.source): part.selection.source for part in parts}.values())
    files = [source.files() for source in sources if isinstance(source, ImageFiles)]
    if len(files) == len(sources) and Path(options.source).is_dir():
        rest = passed_over(Path(options.source), read=itertools.chain.from_iterable(files))
        if rest:
            say(console, f"passed over in {options.source}: {rest}")


def say_written(manifest: Manifest, *, folder: Path, console: Console) -> None:
    """Say in a line what a folder holds, and warn of what training suffers from."""
    size_mib = sum(shard.size_bytes for shard in manifest.shards) / 2**20
    classes = "no classes" if manifest.classes is None else f"{len(manifest.classes)} classes"
    say(
        console,
        f"{folder}: {manifest.num_samples} samples in {len(manifest.shards)} shards, {classes}, {size_mib:.1f} MiB, "
        f"digest {manifest.digest[:12]}",
    )
    shards = open_shards(folder)
    mix = class_mix(shards.labels(), sizes=shards.sizes)
    if mix is not None and mix.is_sorted:
        say(console, f"warning: {mix.warning}")


def _write_part(part: _Part, options: Write, *, console: Console) -> Manifest:
    total = len(part.selection.numbers)

    def samples_from(position: int) -> Iterator[NewSample | Rejected]:
        if position:
            say(console, f"{part.out}: going on after sample {position} of {total}")
        samples = prepared(part.selection, processes=options.processes, start=position)
        return watch(samples, total=total, name=f"writing {part.name}", console=console, start=position)

    limits = ShardLimits(
        samples=options.samples_per_shard, size_bytes=options.shard_mib * 2**20, max_bad=options.max_bad
    )
    classes = part.selection.source.classes
    return resume_shards(samples_from, out=part.out, plan=part.plan, classes=classes, limits=limits)


def _parts(options: Write, *, index_folder: Path, console: Console) -> list[_Part]:
    name, root = find_source(options)
    if options.format == AUTO and name != options.source:
        say(
            console, f"{options.source} is taken as --format {name}" + (f" in {root}" if root != options.source else "")
        )
    check_options(options, name=name)
    source_kind = source_format(name)
    inside = dataclasses.replace(options, source=root)
    selections = _selections(inside, source_kind=source_kind, index_folder=index_folder)
    selections = {split: selection for split, selection in selections.items() if len(selection.numbers)}
    if not selections:
        raise UserError(f"{options.source} holds no sample of --format {name}")
    source = options.source if source_kind.is_drawn else str(Path(options.source).resolve())
    choices = {option: value for option, value in vars(options).items() if option not in NOT_IN_PLAN}
    choices = {option: str(v.resolve()) if isinstance(v, Path) else v for option, v in choices.items()}
    return [
        _Part(
            name=split,
            out=options.out / split if len(selections) > 1 else options.out,
            selection=selection,
            plan={"source": source, "format": name, **choices, "the list of samples": selection.digest()},
        )
        for split, selection in selections.items()
    ]


def _selections(options: Write, *, source_kind: SourceFormat, index_folder: Path) -> dict[str, Selection]:
    """Choose what goes into which split."""
    sources = source_kind.open(options, index_folder)
    if "val" in sources and options.val_fraction and not source_kind.is_drawn:
        raise UserError(f"{options.source} has a val split already: leave --val-fraction out")
    if len(sources) > 1:
        return {
            split: split_off(source, fraction=0.0, seed=options.seed, shuffle=options.shuffle)[0]
            for split, source in sources.items()
        }
    train, val = split_off(sources["train"], fraction=options.val_fraction, seed=options.seed, shuffle=options.shuffle)
    return {"train": train, "val": val}
