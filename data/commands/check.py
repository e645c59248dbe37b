"""`data/main.py index`, `verify` and `show`: shards that exist already, one's own or others'."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.commands.class_order import class_mix
from data.commands.progress import watch
from data.commands.show import contact_sheet, write_contact_sheet
from data.commands.verify import Findings, class_counts, verify
from data.commands.write import say_written
from data.loading.loader import open_shards
from data.loading.working_set import gib
from data.parallel import num_cores
from data.remote.config import CacheConfig
from data.shards.class_names import find_class_names, read_class_names
from data.shards.scan import index_shards
from engine.errors import UserError

MAX_ROWS = 40


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
    processes: int = field(default_factory=num_cores)
    """Processes that read the tars."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check sizes, digests, images, keys and labels; exit code 1 where something is broken."""

    shards: str
    """Folder with the manifest, or its URL."""
    decode: int = 1000
    """How many samples to decode, spread over all."""
    full: bool = False
    """Decode all samples."""
    digests: bool = True
    """Compare every tar with its digest."""
    json_out: Path | None = None
    """Also write the findings to this file."""
    processes: int = field(default_factory=num_cores)
    """Processes that read and decode."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Remote shards."""

    def __post_init__(self) -> None:
        """Refuse what cannot be decoded."""
        if self.decode < 0:
            raise UserError(f"decode must be at least 0, got {self.decode}")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draw a contact sheet and count the classes."""

    shards: str
    """Folder with the manifest, or its URL."""
    out: Path = Path("contact_sheet.png")
    """PNG file to write."""
    count: int = 48
    """How many pictures."""
    columns: int = 8
    """How many in a row."""
    seed: int = 0
    """Which ones."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Remote shards."""


def run_index(options: Index, *, console: Console) -> None:
    """Index shards that were written elsewhere, and say what was passed over."""
    names = options.classes or find_class_names(options.source)
    classes = None if names is None else read_class_names(names)
    manifest, ignored = index_shards(
        options.source, out=options.out, pattern=options.pattern, classes=classes, processes=options.processes
    )
    for reason, count in ignored.most_common(10):
        console.print(f"passed over {count} x {reason}", highlight=False, markup=False)
    say_written(manifest, folder=options.out, console=console)


def run_verify(options: Verify, *, console: Console) -> None:
    """Check shards and say what was found.

    Raises:
        UserError: something is broken.
    """

    def watched(results: Iterable[str | None], total: int) -> Iterable[str | None]:
        return watch(results, total=total, name="decoding", console=console)

    findings = verify(
        options.shards,
        num_decoded=None if options.full else options.decode,
        digests=options.digests,
        processes=options.processes,
        watch=watched,
        cache=options.cache,
    )
    if options.json_out is not None:
        text = json.dumps({"passed": findings.passed, **dataclasses.asdict(findings)}, indent=1, ensure_ascii=False)
        options.json_out.write_text(text + "\n")
    _say_findings(findings, console=console)
    if not findings.passed:
        raise UserError(f"{options.shards} has {len(findings.problems)} problems, the first: {findings.problems[0]}")


def run_show(options: Show, *, console: Console) -> None:
    """Draw a contact sheet and say what the shards hold."""
    shards = open_shards(options.shards, cache=options.cache)
    sheet = contact_sheet(shards, count=options.count, columns=options.columns, seed=options.seed)
    write_contact_sheet(options.out, sheet)
    counts = class_counts(shards)
    if counts:
        console.print(_count_table(counts))
    mix = class_mix(shards.labels(), sizes=shards.sizes)
    if mix is not None and mix.is_sorted:
        console.print(f"warning: {mix.warning}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{shards.num_samples} samples in {len(shards.sizes)} shards; contact sheet in {options.out}")


def _say_findings(findings: Findings, *, console: Console) -> None:
    if findings.counts:
        console.print(_count_table(findings.counts))
    for text in findings.warnings:
        console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)
    for text in findings.problems:
        console.print(f"problem: {text}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{findings.num_samples} samples in {findings.num_shards} shards ({findings.size_bytes / 2**20:.1f} MiB): "
        f"{findings.num_digests} digests compared, {findings.num_decoded} images decoded, {len(findings.problems)} problems",
        soft_wrap=True,
    )
    console.print(
        f"read remotely, with the default batch and window, they need data.cache.gib of at least "
        f"{gib(findings.working_set_bytes)} on each node",
        highlight=False,
        soft_wrap=True,
    )


def _count_table(counts: dict[str, int]) -> Table:
    """Return all classes, or of many those with the most and the fewest samples."""
    table = Table("class", "name", "samples")
    rows = [(str(label), Text(name), str(count)) for label, (name, count) in enumerate(counts.items())]
    if len(rows) <= MAX_ROWS:
        for row in rows:
            table.add_row(*row)
        return table
    rows.sort(key=lambda row: -int(row[2]))
    for row in rows[: MAX_ROWS // 4]:
        table.add_row(*row)
    table.add_row("...", f"{len(rows) - MAX_ROWS // 2} more", "...")
    for row in rows[-MAX_ROWS // 4 :]:
        table.add_row(*row)
    return table
