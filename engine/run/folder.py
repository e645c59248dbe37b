"""The folder of one run: who writes it, with which config, on which machine.

runs/x/
├── config.yaml          resolved; reads back as a recipe
├── environment.json     one entry per start: versions, commit, hardware
├── metrics.jsonl        one line per report
├── metrics.cut.jsonl    lines of steps that were done again after a resume
├── bad_samples.jsonl    each image that could not be decoded, once
├── non_finite/          micro-batches that were not finite (engine/faults/non_finite_record.py)
├── stalls/              heartbeats, and stacks of a run that hung (watchdog.py)
├── tensorboard/  checkpoints/step-000010000/  backbone/  report.html
├── lock.json            who runs here now
├── stopped.json         of a run that ended early, as asked: its step, who asked and when; gone once it goes on
├── launch/              jobs on a cluster, made by launch/main.py
└── STOP                 made by the user: save and end

A folder that is made here is open to its owner and, for reading, to the owner's group.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.documents import parse_yaml, read_json, read_yaml
from engine.errors import PassingError, UserError, explain
from engine.recipe import dump
from engine.run.durable import write_durably
from engine.run.environment import describe_environment
from engine.run.lock import RunLock

logger = logging.getLogger(__name__)

STOP = "STOP"
_TRACES = ("tensorboard", "metrics.jsonl", "probes.jsonl", "bad_samples.jsonl", "non_finite", "stalls", "launch")
"""What lies in the folder of a run that has begun, or that a job has submitted."""
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif")
_SHARD = re.compile(r"(.*[-_.])?\d{1,7}\.tar")
_SEVERAL, _MOST_ENTRIES, _MOST_FOLDERS = 3, 1000, 20
"""Images that make a folder one of images, and how much of it is looked at."""
PRIVATE = 0o750
"""Permissions of a new run folder: recipes and logs may name data that others must not see."""


class RunFolder:
    """Paths and rules of a run folder; ``with RunFolder.open(...)`` holds it against other runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.backbone = path / "backbone"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.stopped = path / "stopped.json"
        self._stop = path / STOP
        self._lock: RunLock | None = None
        self._obeyed = False
        self._made: list[Path] = []
        """The folders that this start has made, the run folder first."""
        self._closing = contextlib.ExitStack()

    @classmethod
    def open(cls, path: Path, *, config: Any, rank: int = 0) -> "RunFolder":
        """Open the folder, made if need be; process 0 locks it and writes config and environment.

        ``config`` is a config dataclass. Where checkpoints exist already, only its ``may_change`` fields may differ
        from those that made them.

        Raises:
            UserError: another run holds the folder, or the config differs; the message says who, or which values; or it
                holds shards or images.
        """
        run = cls(path)
        if rank == 0:
            check_run_place(path)
            try:
                run._made = [folder for folder in (path, *path.parents) if not folder.exists()]
                make_private(path)
                run.checkpoints.mkdir(exist_ok=True)
                run._lock = RunLock(path)
                run._lock.acquire()
                run._record(config)
                run.stopped.unlink(missing_ok=True)
            except OSError as error:
                run.close()
                reason = explain(error) or f"{error}; check --run.folder"
                raise PassingError(f"run folder {path} cannot be used: {reason}") from None
            except BaseException:
                run.close()
                raise
        return run

    def __enter__(self) -> "RunFolder":
        """Enter with the lock that ``open`` has taken."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, whatever happened; a start that was refused leaves no folder."""
        self._closing.close()
        if isinstance(error, UserError) and self._made and not any((self.path / name).exists() for name in _TRACES):
            self._put_away()
        self.close()

    def at_close(self, callback: Callable[[], object]) -> None:
        """Let ``callback`` run when the folder is closed, whatever happened."""
        self._closing.callback(callback)

    def close(self) -> None:
        """Release the lock, and remove the STOP file if it was obeyed."""
        self._closing.close()
        if self._obeyed:
            self._stop.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def stop_requested(self) -> bool:
        """Whether the user asks for the end (the STOP file), which is removed when the folder is closed.

        Raises:
            UserError: another process has taken this folder over.
        """
        if self._lock is not None and self._lock.lost:
            raise PassingError(f"run folder {self.path} was taken over by another process; this one stops")
        if self._stop.exists():
            self._obeyed = True
        return self._obeyed

    def note_stopped(self, step: int, *, reason: str, signalled_at: float | None) -> None:
        """Write down that the run ended early and is saved, so that whoever started it knows it is not finished.

        ``signalled_at`` is the time of the signal, in seconds since 1970, if this process got one.
        """
        content = {"step": step, "reason": reason, "asked": signalled_at, "saved": time.time()}
        write_durably(self.stopped, json.dumps(content).encode())

    def cut_metrics(self, step: int) -> None:
        """Move the metrics of steps past ``step``, and a line cut short by a kill, to ``metrics.cut.jsonl``."""
        if not self.metrics.exists():
            return
        kept: list[bytes] = []
        cut: list[bytes] = []
        for line in self.metrics.read_bytes().splitlines(keepends=True):
            (kept if is_until(line, step) else cut).append(line)
        if cut:
            with self.path.joinpath("metrics.cut.jsonl").open("ab") as side:
                side.writelines(line if line.endswith(b"\n") else line + b"\n" for line in cut)
            write_durably(self.metrics, b"".join(kept))
            logger.info("moved %d lines past step %d out of %s", len(cut), step, self.metrics)

    def _put_away(self) -> None:
        """Remove what a start has made and release its lock; what others put beside it stays, and its folder, too."""
        if self._lock is None:
            return
        self._lock.remove_folder([self.checkpoints, self.config, self.environment])
        self._lock = None
        for folder in self._made[1:]:
            with contextlib.suppress(OSError):  # another run came into it
                folder.rmdir()

    def _record(self, config: Any) -> None:
        text = dump(config)
        if self.config.exists() and checkpoint_steps(self.checkpoints):
            changes = changed_fields(config, stored=read_recipe(self.config))
            if changes:
                raise UserError(
                    f"{self.config} made the checkpoints in this folder and differs from what is asked: "
                    f"{'; '.join(changes)}. Use the stored values, another --run.folder, or start a new run from a "
                    "checkpoint of this one with --run.branch-from"
                )
        write_durably(self.config, text.encode())
        starts: Any = []
        with contextlib.suppress(OSError, UserError):
            starts = read_json(self.environment)
        earlier: list[Any] = starts if isinstance(starts, list) else []
        write_durably(self.environment, json.dumps([*earlier, describe_environment()], indent=1).encode())


def check_run_place(path: Path) -> None:
    """Refuse to make a run of a folder that is one of shards or images, or of images by class.

    A few other files, such as an archive of the code, or shards in a folder of their own may lie beside a run's.

    Raises:
        UserError: it is; the message names a file in it.
    """
    if not path.is_dir() or (path / "config.yaml").exists():
        return
    entries = _entries(path)
    data = [file for file in entries if file.name == "manifest.json" or _SHARD.fullmatch(file.name)]
    if len(images := _images(entries)) >= _SEVERAL:
        data += images
    if data := data or _images_by_class(entries):
        raise UserError(f"{path} is no run folder: it holds {data[0].relative_to(path)}; choose another --run.folder")


def _images_by_class(entries: Sequence[Path]) -> list[Path]:
    """The images of a folder's subfolders where these are several, and most of them hold mostly images."""
    subfolders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")][:_MOST_FOLDERS]
    contents = [_entries(folder) for folder in subfolders]
    classes = [images for content in contents if len(images := _images(content)) * 2 > len(content)]
    images = [image for some in classes for image in some]
    return images if len(classes) > 1 and len(classes) * 2 > len(contents) and len(images) >= _SEVERAL else []


def _images(entries: Sequence[Path]) -> list[Path]:
    return [file for file in entries if file.suffix.lower() in _IMAGES]


def _entries(folder: Path) -> list[Path]:
    """Some of what a folder holds; nothing where it may not be read, as whoever writes there will say."""
    try:
        return sorted(itertools.islice(folder.iterdir(), _MOST_ENTRIES))
    except OSError:
        return []


def checkpoint_steps(folder: Path) -> list[int]:
    """List the steps of the complete checkpoints in ``folder``, ascending; they may be damaged."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdigit())


def step_folder(folder: Path, step: int) -> Path:
    """Name the folder of one step's checkpoint."""
    return folder / f"step-{step:09d}"


def make_private(path: Path, *, mode: int = PRIVATE) -> None:
    """Make the folder ``path`` with these permissions, whatever the umask; one that exists keeps its own."""
    try:
        path.mkdir(mode=mode, parents=True)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)


def changed_fields(config: Any, *, stored: dict[str, Any]) -> list[str]:
    """List "name: stored X, asked Y" for each field that differs and may not; both in their plain YAML form.

    A field that the stored config does not know yet counts as its default.
    """
    asked = parse_yaml(dump(config))
    return list(_changes(config, asked, stored, prefix=""))


def _changes(config: Any, asked: dict[str, Any], stored: dict[str, Any], *, prefix: str) -> Iterator[str]:
    fields = {f.name: f for f in dataclasses.fields(config)}
    for name in (*fields, *(key for key in stored if key not in fields)):
        field, full = fields.get(name), prefix + name
        if field is None:
            yield f"{full}: stored {stored[name]!r}, unknown to this version"
        elif field.metadata.get("may_change"):
            continue
        elif dataclasses.is_dataclass(value := getattr(config, name)):
            section = stored.get(name) or {}
            if isinstance(section, dict):
                yield from _changes(value, asked[name], section, prefix=f"{full}.")
            else:
                yield f"{full}: stored {section!r}, expected a mapping"
        elif name not in stored:
            if getattr(config, name) != _default(field):
                yield f"{full}: not stored, asked {asked[name]!r}"
        elif asked[name] != stored[name]:
            yield f"{full}: stored {stored[name]!r}, asked {asked[name]!r}"


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe that a run wrote down.

    Raises:
        UserError: it is damaged.
    """
    try:
        return read_yaml(path)
    except (UserError, OSError) as error:
        reason = explain(error) or str(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{reason}; restore {path.name} or choose another --run.folder") from None


def is_until(line: bytes, step: int) -> bool:
    """Whether a line of JSON is whole and of a step up to ``step``."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
