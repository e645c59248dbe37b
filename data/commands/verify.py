"""`data/main.py verify`: are the tars those that the manifest names, do samples decode, do labels make sense?"""

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from data.commands.class_counts import count_labels, count_table
from data.commands.class_order import class_mix
from data.commands.config import Verify
from data.commands.console import say, start_console, watch
from data.commands.sample_check import SAMPLES_PER_TASK, SampleCheck, SampleReport, check_samples, describe_values
from data.config import DataConfig
from data.images.annotations import ObjectFaults
from data.loading.working_set import gib, usual_working_set_bytes
from data.parallel import in_order
from data.remote.cache import CachedFile
from data.remote.config import CacheConfig
from data.remote.download import GaveUpError
from data.remote.locations import join
from data.shards.index import SampleEntry
from data.shards.manifest import Manifest, ShardInfo, file_sha256
from data.shards.open_shard import cached_files
from data.shards.shard_set import ShardSet, open_shards
from engine.errors import UserError
from engine.run.durable import write_durably

Watch = Callable[[Iterable[SampleReport], int], Iterable[SampleReport]]

MAX_LISTED = 20
MAX_COMPARED_KEYS = 50_000_000


@dataclass(kw_only=True)
class Findings:
    """What a check found; problems mean that the data set must not be used as it is."""

    num_shards: int = 0
    """Shards in the manifest."""
    num_samples: int = 0
    """Samples in the manifest."""
    size_bytes: int = 0
    """Size of all tars."""
    working_set_bytes: int = 0
    """Size of the shards that a node reads at once with the default batch and window: the least cache for them."""
    num_digests: int = 0
    """Tars whose bytes were compared with their digest."""
    num_decoded: int = 0
    """Samples whose image, label map and annotations were decoded."""
    num_unlabelled: int = 0
    """Samples without a class number, in a labelled data set."""
    num_duplicate_keys: int = 0
    """Samples whose key another one has, too."""
    num_unusable_objects: int = 0
    """Objects of the decoded samples that nothing can be learnt from."""
    num_unusable_masks: int = 0
    """Other objects of theirs with an unusable mask."""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """Samples by class name."""
    map_values: dict[int, int] = field(default_factory=dict[int, int])
    """Pixels of the decoded label maps by their value."""
    problems: list[str] = field(default_factory=list[str])
    """What is broken."""
    warnings: list[str] = field(default_factory=list[str])
    """What is odd."""

    @property
    def passed(self) -> bool:
        """Whether nothing is broken."""
        return not self.problems


def run_verify(options: Verify) -> None:
    """Check shards and say what is wrong.

    Raises:
        UserError: something is broken.
    """
    console = start_console()

    def watched(results: Iterable[SampleReport], total: int) -> Iterable[SampleReport]:
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
        write_durably(options.json_out, f"{text}\n".encode())
    _say_findings(findings, console=console)
    if not findings.passed:
        raise UserError(f"{options.shards} has {len(findings.problems)} problems, the first: {findings.problems[0]}")


def verify(
    folder: Path | str,
    *,
    num_decoded: int | None = 1000,
    digests: bool = True,
    max_pixels: int = DataConfig.max_pixels,
    processes: int = 1,
    watch: Watch | None = None,
    cache: CacheConfig | None = None,
) -> Findings:
    """Check the data set in ``folder``, decoding this many samples spread over it (None: all of them).

    ``watch(results, total)`` passes the decoded samples' results on and may show how far the check is. Remote shards
    are compared with their digests as they come into the ``cache``.

    Raises:
        UserError: there is no manifest to check.
    """
    shards = open_shards(folder, cache=cache)
    manifest = shards.manifest
    findings = Findings(
        num_shards=len(manifest.shards),
        num_samples=manifest.num_samples,
        size_bytes=sum(shard.size_bytes for shard in manifest.shards),
        working_set_bytes=usual_working_set_bytes(shards),
    )
    # Files first: what is missing or not the manifest's is one problem, not one for each of its samples.
    state = (shards, digests)
    checked = in_order(_file_problem, manifest.shards, state=state, processes=min(processes, len(manifest.shards)))
    file_problems = list(checked)
    findings.problems += [problem for problem in file_problems if problem]
    if not manifest.num_samples:
        findings.problems.append("the manifest names no sample")
    sound = [number for number, problem in enumerate(file_problems) if problem is None]
    findings.num_digests = len(sound) if digests else 0
    # An index may be the manifest's and still not be one that opens.
    sound = [number for number in sound if _opens(shards, number, findings)]
    _check_labels(shards, manifest=manifest, sound=sound, findings=findings)
    _check_keys(shards, sound=sound, findings=findings)
    # Decoding takes longest and comes last, with its progress shown.
    num_sound = sum(manifest.shards[number].num_samples for number in sound)
    num_decoded = num_sound if num_decoded is None else min(num_decoded, num_sound)
    places = _spread(shards, sound=sound, count=num_decoded)
    tasks = iter(lambda: list(itertools.islice(places, SAMPLES_PER_TASK)), [])
    check = SampleCheck(shards=shards, max_pixels=max_pixels)
    checked_samples = in_order(check_samples, tasks, state=check, processes=processes)
    results = itertools.chain.from_iterable(checked_samples)
    _take_reports(watch(results, num_decoded) if watch else results, findings=findings)
    shards.close()
    return findings


def _say_findings(findings: Findings, *, console: Console) -> None:
    if findings.counts:
        console.print(count_table(findings.counts))
    if findings.map_values:
        say(console, describe_values(Counter(findings.map_values)))
    for text in findings.warnings:
        say(console, f"warning: {text}")
    for text in findings.problems:
        say(console, f"problem: {text}")
    console.print(
        f"{findings.num_samples} samples in {findings.num_shards} shards ({findings.size_bytes / 2**20:.1f} MiB): "
        f"{findings.num_digests} digests compared, {findings.num_decoded} images decoded, "
        f"{len(findings.problems)} problems",
        soft_wrap=True,
    )
    say(
        console,
        f"read remotely, with the default batch and window, they need data.cache.gib of at least "
        f"{gib(findings.working_set_bytes)} on each node",
    )


def _file_problem(state: tuple[ShardSet, bool], info: ShardInfo) -> str | None:
    """Compare a tar and its index with the manifest; say why the shard cannot be looked into."""
    shards, digests = state
    tar, index = cached_files(shards.root, info=info)
    for name, sha256, remote in ((info.name, info.sha256, tar), (info.index, info.index_sha256, index)):
        if remote is None:
            problem = _local_problem(Path(join(shards.root, name)), sha256=sha256 if digests else None)
        else:
            problem = _remote_problem(shards, remote) if digests else None
        if problem is not None:
            return problem
    return None


def _local_problem(path: Path, *, sha256: str | None) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if sha256 is None or (actual := file_sha256(path)) == sha256:
        return None
    return f"{path} has changed: sha256 {actual[:12]}…, the manifest says {sha256[:12]}…"


def _remote_problem(shards: ShardSet, file: CachedFile) -> str | None:
    try:
        shards.cache.prefetch(file)  # which compares the digest
    except GaveUpError:  # the next one would wait as long
        raise
    except (UserError, OSError) as error:
        return str(error)
    return None


def _opens(shards: ShardSet, number: int, findings: Findings) -> bool:
    try:
        _ = shards.entries(number).labels
    except (UserError, OSError) as error:
        findings.problems.append(str(error))
        return False
    return True


def _check_labels(shards: ShardSet, *, manifest: Manifest, sound: list[int], findings: Findings) -> None:
    if manifest.classes is None:
        return
    labels = np.concatenate([shards.entries(number).labels for number in sound] or [np.zeros(0, np.int64)])
    if (labels < 0).all():  # its classes are those of boxes or label maps
        return
    findings.counts = count_labels(labels, classes=manifest.classes)
    findings.num_unlabelled = int((labels < 0).sum())
    beyond = int((labels >= len(manifest.classes)).sum())
    if beyond:
        findings.problems.append(f"{beyond} samples have a class number of {len(manifest.classes)} or more")
    if findings.num_unlabelled:
        findings.warnings.append(f"{findings.num_unlabelled} samples have no label")
    mix = class_mix(labels, sizes=tuple(len(shards.entries(number)) for number in sound))
    if mix is not None and mix.is_sorted:
        findings.warnings.append(mix.warning)
    empty = [name for name, count in findings.counts.items() if not count]
    if empty:
        findings.warnings.append(f"{len(empty)} classes have no sample: {', '.join(empty[:5])}")


def _check_keys(shards: ShardSet, *, sound: list[int], findings: Findings) -> None:
    if findings.num_samples > MAX_COMPARED_KEYS:
        findings.warnings.append(f"keys were not compared: there are more than {MAX_COMPARED_KEYS} samples")
        return
    keys = (entry.key for number in sound for entry in _entries(shards, number))
    hashes = np.fromiter((_hash(key) for key in keys), np.uint64)
    _, counts = np.unique(hashes, return_counts=True)
    findings.num_duplicate_keys = int(counts[counts > 1].sum())
    if findings.num_duplicate_keys:
        twice = Counter(entry.key for number in sound for entry in _entries(shards, number)).most_common(1)[0][0]
        findings.warnings.append(f"{findings.num_duplicate_keys} samples share their key with another, like {twice}")


def _take_reports(reports: Iterable[SampleReport], *, findings: Findings) -> None:
    """Count what was decoded, and name the first of what was not."""
    num_bad = 0
    faults, values = ObjectFaults(), Counter[int]()
    for report in reports:
        findings.num_decoded += 1
        faults.join(report.faults)
        values.update(report.values)
        if report.problem is not None:
            num_bad += 1
            if num_bad <= MAX_LISTED:
                findings.problems.append(report.problem)
    if num_bad > MAX_LISTED:
        findings.problems.append(f"and {num_bad - MAX_LISTED} more samples that do not decode")
    findings.num_unusable_objects, findings.num_unusable_masks = faults.num_unusable, faults.num_without_mask
    findings.map_values = dict(sorted(values.items()))
    if text := str(faults):
        findings.warnings.append(text)


def _spread(shards: ShardSet, *, sound: list[int], count: int) -> Iterator[tuple[int, int]]:
    """Yield the places of ``count`` samples at equal distances."""
    sizes = np.array([len(shards.entries(number)) for number in sound], np.int64)
    ends = np.cumsum(sizes)
    total = int(sizes.sum())
    for place in ((number * total) // count for number in range(count)):
        turn = int(np.searchsorted(ends, place, side="right"))
        yield sound[turn], place - int(ends[turn] - sizes[turn])


def _entries(shards: ShardSet, number: int) -> Iterable[SampleEntry]:
    index = shards.entries(number)
    return (index[position] for position in range(len(index)))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
