"""What the launcher keeps of a run's jobs, below the run folder.

runs/x/launch/           open to nobody but its owner: what submitit writes here is unpickled when a job starts
├── job.json             program, cluster, nodes and the jobs submitted, the last one last
├── recipe.yaml          the resolved recipe, as submitted
├── events.jsonl         starts and ends of attempts, signals, decisions
├── cancelled            made by `cancel`: do not go on
└── jobs/                submitit's: scripts, pickles, one log per node
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.run.durable import write_durably
from engine.run.folder import make_private
from launch.config import ClusterConfig, RestartConfig
from launch.program_calls import RECIPE, Call

NAME = "launch"
ONLY_OWNER = 0o700


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
            UserError: it exists and others may write there.
        """
        make_private(self.run)
        make_private(self.path, mode=ONLY_OWNER)
        if self.path.stat().st_mode & 0o077:
            raise UserError(
                f"{self.path} is open to others, who could put code there: chmod 700 {self.path}, and look into it"
            )
        self.jobs.mkdir(exist_ok=True)

    def write(self, job: Job) -> None:
        """Write down what is submitted."""
        self.recipe.write_text(job.call.recipe)
        write_durably(self._job, json.dumps(dataclasses.asdict(job), indent=1, default=str).encode())

    @contextlib.contextmanager
    def unless_refused(self) -> Iterator[None]:
        """Put back what was submitted before, and whether it was cancelled, if what is within fails."""
        kept = {path: path.read_bytes() if path.exists() else None for path in (self._job, self.recipe, self.cancelled)}
        try:
            yield
        except BaseException as error:
            for path, content in kept.items():
                if content is None:
                    path.unlink(missing_ok=True)
                else:
                    write_durably(path, content)
            self.note("refused", reason=str(error))
            raise

    def add_id(self, number: str) -> None:
        """Write down a job's number."""
        job = self.read()
        self.write(dataclasses.replace(job, ids=(*job.ids, number)))

    def read(self) -> Job:
        """Return what was submitted last.

        Raises:
            UserError: nothing was submitted from here.
        """
        try:
            tree: dict[str, Any] = json.loads(self._job.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.run} has no job: expected {self._job}, which launch/main.py writes") from None
        call, cluster = tree["call"], tree["cluster"]
        return Job(
            call=Call(**{**call, "words": tuple(call["words"]), "folder": Path(call["folder"])}),
            cluster=ClusterConfig(
                **{
                    **cluster,
                    "setup": tuple(cluster["setup"]),
                    "environment": tuple(cluster["environment"]),
                    "restart": RestartConfig(**cluster["restart"]),
                }
            ),
            nodes=tree["nodes"],
            cwd=tree["cwd"],
            ids=tuple(tree["ids"]),
        )

    def exists(self) -> bool:
        """Return whether anything was submitted for this run."""
        return self._job.is_file()

    def program(self, job: Job) -> list[str]:
        """Return script and options of the program as a node runs it."""
        recipe = str(self.recipe.absolute())
        return [str(job.call.script), *(recipe if word == RECIPE else word for word in job.call.words)]

    def note(self, event: str, **particulars: Any) -> None:
        """Add a line to the events."""
        line = {"event": event, "time": time.time(), **particulars}
        with self._events.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Return the events so far; a line cut short by a kill is left out."""
        return list(self._read_events())

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        names = (path.name for path in (self.run / "checkpoints").glob("step-*[0-9]"))
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def stopped(self) -> dict[str, Any] | None:
        """Return what a run that was stopped and saved says of it; None if it was not."""
        try:
            return json.loads((self.run / "stopped.json").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _read_events(self) -> Iterator[dict[str, Any]]:
        text = self._events.read_text() if self._events.exists() else ""
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue
