"""What the launcher keeps of a run's jobs, below the run folder.

runs/x/launch/           open to nobody but its owner: what submitit writes here is unpickled when a job starts
├── job.json             program, cluster, nodes and the jobs submitted, the last one last
├── recipe.yaml          the resolved recipe, as submitted
├── events.jsonl         starts and ends of attempts, signals, decisions
├── submitting           locked by a command that submits
├── refusal-0            why the program of a node refused to start, while its attempt lasts
├── cancelled            made by `cancel`: do not go on
└── jobs/                submitit's: scripts, pickles, one log per node

A job may wait or run while the checkout is updated: its folder, and the names in its pickle (`launch.node.NodeJob`) and
in its script (`launch/main.py settle`), are read by every later version.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.documents import from_tree, json_lines, member, parse_json
from engine.errors import UserError
from engine.extensions import extension_arguments
from engine.run.durable import append, write_durably
from engine.run.folder import checkpoint_steps, make_private
from launch.config import ClusterConfig
from launch.program_calls import RECIPE, Call

NAME = "launch"
ONLY_OWNER = 0o700
KNOWN_WAIT_S = 90.0
"""A file that was written on the login node is seen by all nodes after this time."""
KNOWN_LOOK_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a job runs, and where."""

    call: Call
    """The program's checked command line."""
    cluster: ClusterConfig
    """Where it runs."""
    nodes: int
    """How many nodes it was asked for."""
    cwd: str
    """Folder that relative paths start from."""
    ids: tuple[str, ...] = ()
    """Numbers in the queue, or of the process on this machine; the last one is the newest."""


class JobFolder:
    """The folder of a run's jobs."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / NAME
        self.jobs = self.path / "jobs"
        self.recipe = self.path / "recipe.yaml"
        self.cancelled = self.path / "cancelled"
        self._job = self.path / "job.json"
        self._events = self.path / "events.jsonl"

    def make(self) -> None:
        """Make it, open to nobody else.

        Raises:
            UserError: it exists and others may write there, or put another one in its place.
        """
        make_private(self.run)
        _refuse_exchangeable(self.run)
        if self.path.is_symlink():
            raise UserError(f"{self.path} is a link, and jobs run what lies there: expected a folder; remove the link")
        make_private(self.path, mode=ONLY_OWNER)
        _refuse_of_others(self.path)
        if self.path.stat().st_mode & 0o077:
            raise UserError(
                f"{self.path} is open to others, who could put code there: chmod 700 {self.path}, and look into it"
            )
        self.jobs.mkdir(exist_ok=True)

    def write(self, job: Job) -> None:
        """Write down what is submitted."""
        write_durably(self.recipe, job.call.recipe.encode())
        tree = dataclasses.asdict(job)
        tree["call"]["words"] = tree["call"].pop("arguments")  # its name in the file
        write_durably(self._job, json.dumps(tree, indent=1, default=str).encode())

    @contextlib.contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Put back what was submitted before, and whether it was cancelled, if what is within fails."""
        files = (self._job, self.recipe, self.cancelled)
        contents = {path: path.read_bytes() if path.exists() else None for path in files}
        try:
            yield
        except BaseException as error:
            for path, content in contents.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    write_durably(path, content)
            self.note("refused", reason=str(error))
            raise

    @contextlib.contextmanager
    def submitting(self) -> Iterator[None]:
        """Keep other commands from submitting this run as well; a folder that was made for nothing is put away.

        Raises:
            UserError: another one does.
        """
        run_is_new, is_new = not self.run.exists(), not self.path.exists()
        self.make()
        with (self.path / "submitting").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another command submits {self.run} right now; wait until it has ended") from None
            except OSError:
                pass  # the file system has no locks: a job that is not written down ends itself
            try:
                yield
            except BaseException:
                if is_new and not (self.exists() and self.read().ids):
                    shutil.rmtree(self.path)
                if run_is_new and not any(self.run.iterdir()):
                    self.run.rmdir()
                raise

    def knows(self, number: str, *, wait_s: float = 0.0) -> bool:
        """Whether a job with this number was written down, at the latest in ``wait_s``: it may start before."""
        deadline = time.monotonic() + wait_s
        while number not in self.read().ids:
            if time.monotonic() >= deadline:
                return False
            time.sleep(KNOWN_LOOK_S)
        return True

    def refusal(self, node: int) -> Path:
        """The file into which the program of a node writes why it refuses to start."""
        return self.path / f"refusal-{node}"

    def add_id(self, number: str) -> None:
        """Write down a job's number."""
        job = self.read()
        self.write(dataclasses.replace(job, ids=(*job.ids, number)))

    def read(self) -> Job:
        """Read what was submitted last.

        Raises:
            UserError: nothing was submitted from here.
        """
        try:
            tree = parse_json(self._job.read_bytes())
            call = member(tree, "call", dict)
            call["arguments"] = member(call, "words", list)  # its name in the file
            del call["words"]
            return from_tree(Job, tree)
        except FileNotFoundError:
            raise UserError(f"{self.run} has no job: expected {self._job}, which launch/main.py writes") from None
        except UserError as error:
            raise UserError(
                f"{self._job} is no job of this version of the launcher: {error}; submit it again"
            ) from None

    def exists(self) -> bool:
        """Whether anything was submitted for this run."""
        return self._job.is_file()

    def program(self, job: Job) -> list[str]:
        """Write the program's command line as a node runs it: script and arguments."""
        recipe = str(self.recipe.absolute())
        arguments = [recipe if argument == RECIPE else argument for argument in job.call.arguments]
        return [str(job.call.script), *arguments, *extension_arguments(job.call.extensions)]

    def note(self, event: str, **particulars: Any) -> None:
        """Add a line to the events."""
        line = {"event": event, "time": time.time(), **particulars}
        append(self._events, json.dumps(line) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Read the events so far; a line cut short by a kill is left out."""
        return json_lines(self._events.read_bytes()) if self._events.exists() else []

    def is_unsettled(self) -> bool:
        """Whether the newest attempt has started, and nothing was written of its end."""
        names = [event["event"] for event in self.events() if event["event"] in ("submit", "start", "end")]
        return bool(names) and names[-1] == "start"

    def newest_step(self) -> int:
        """Look up the step of the newest checkpoint, 0 without one."""
        return max(checkpoint_steps(self.run / "checkpoints"), default=0)

    def stopped(self) -> dict[str, Any] | None:
        """Read what a run that was stopped and saved wrote of it; None if it was not."""
        try:
            stopped = parse_json((self.run / "stopped.json").read_bytes())
        except (FileNotFoundError, UserError):
            return None
        return stopped if isinstance(stopped, dict) else None


def _refuse_exchangeable(run: Path) -> None:
    """Refuse a run folder that is another user's, and one in which, or above which, everybody may rename folders.

    They could put their own code there. Owners of folders above it, and groups that may write there, are trusted.
    """
    _refuse_of_others(run)
    for folder in (run.resolve(), *run.resolve().parents):
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UserError(
                f"{folder} can be written to by everybody, who could exchange what the job of {run} runs: chmod o-w "
                f"{folder} (or chmod +t), or choose another --run.folder"
            )


def _refuse_of_others(folder: Path) -> None:
    owner = folder.stat().st_uid
    if owner not in (os.geteuid(), 0):
        raise UserError(
            f"{folder} belongs to another user (number {owner}), who could exchange what the job runs; choose another "
            "--run.folder"
        )
