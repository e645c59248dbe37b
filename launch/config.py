"""A cluster, as its file describes it, and the launcher's own options. Imports no torch."""

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from engine.errors import UserError
from engine.recipe import parse

CLUSTERS = Path(__file__).resolve().parent / "clusters"

_SECRET = re.compile(r"(?<![\w-])((?:\w*_)?(?:KEY|TOKEN|SECRET|PASSWORD))=", re.IGNORECASE)
"""An assignment to a name whose last part, between underscores, marks it as a secret; --options are none."""
_LOGIN = re.compile(r"[A-Za-z][\w+.-]*://([^\s/@]*:[^\s/@]*|[^\s/@:]{20,})@")
"""A URL with a password in it, such as that of a proxy, or with a name that is long as a token is."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, kw_only=True)
class RestartConfig:
    """When a job starts again by itself.

    After preemption, time limits and lost nodes it does as long as there is progress.
    """

    limit: int = 20
    """Restarts after failures in the whole run; 0 never restarts."""
    limit_without_progress: int = 2
    """Restarts in a row that may bring no newer checkpoint; 0 restarts only where there was progress."""
    limit_stopped_without_progress: int = 10
    """The same, of restarts after preemption, time limits and lost nodes."""
    backoff_s: int = 60
    """Wait before a restart; twice as long for each one before it without progress."""
    longest_backoff_s: int = 3600
    """No wait is longer."""

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 0:
            raise UserError(f"restart's numbers must not be negative, got {self}")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """A cluster, as its file in `launch/clusters/` says; `--cluster.OPTION value` changes one line for one job."""

    scheduler: Literal["slurm", "local"] = "slurm"
    """slurm: sbatch; local: on this machine, in the background, with no Slurm."""
    partition: str | None = None
    """Slurm partition; None takes the cluster's default."""
    account: str | None = None
    """Slurm account to charge."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Slurm features that nodes must have, such as `a100_80gb`."""
    exclude: str | None = None
    """Nodes not to use, such as `node[07,12]`."""
    gpus_per_node: int | None = None
    """GPUs of a node, 0 for CPUs; None: under Slurm 0, on this machine all that it has."""
    processes_per_node: int | None = None
    """Training processes of a node; None: one per GPU, or one without GPUs."""
    cpus_per_node: int | None = None
    """CPU cores of a node's job; None takes the cluster's default. Loader workers need `data.workers` per process."""
    memory_gib: int | None = None
    """Memory of a node's job; None takes the cluster's default, 0 the whole node's."""
    time_limit_min: int = 24 * 60
    """Time limit of one job; a run that needs longer goes on in the next one by itself."""
    warning_s: int = 180
    """How long before the time limit a job is told to save; a checkpoint must fit into it."""
    step_wait_s: int = 300
    """How long srun waits for the nodes of its job to be free of what ran there; then the job is queued again."""
    exclusive: bool = False
    """Share nodes with nobody."""
    container: str | None = None
    """Command before `python` for training processes, such as `apptainer exec --nv green-pretrain.sif`.

    None: this Python.
    """
    setup: tuple[str, ...] = ()
    """Shell lines before the job's start, such as `module load cuda/12.4`."""
    environment: tuple[str, ...] = ()
    """`NAME=value` for every process. Secrets do not belong here: what you export before submitting is passed on."""
    master_port: int = 20_000
    """Processes meet on a port from here to 20,000 above, chosen by job number."""
    restart: RestartConfig = field(default_factory=RestartConfig)

    def __post_init__(self) -> None:
        for assignment in self.environment:
            if not _VARIABLE.match(assignment):
                raise UserError(f"environment takes NAME=value, got {assignment!r}")
        _refuse_secrets("environment", [assignment.partition("=")[0] + "=" for assignment in self.environment])
        _refuse_logins("environment", self.environment)
        _refuse_logins("setup", self.setup)
        _refuse_logins("container", [self.container or ""])
        _refuse_secrets("setup", self.setup)
        _refuse_secrets("container", [self.container or ""])
        if (self.gpus_per_node or 0) < 0 or (self.processes_per_node is not None and self.processes_per_node < 1):
            raise UserError(
                f"gpus-per-node must not be negative and processes-per-node at least 1, "
                f"got {self.gpus_per_node} and {self.processes_per_node}"
            )
        if self.warning_s < 1 or self.time_limit_min * 60 <= self.warning_s:
            raise UserError(
                f"the warning comes warning-s before the end: expected at least 1 and less than the "
                f"{self.time_limit_min} minutes of time-limit-min, got {self.warning_s}"
            )
        if not 1024 <= self.master_port <= 45_000:
            raise UserError(f"master-port must lie in 1024 to 45000, got {self.master_port}")


def _refuse_secrets(option: str, lines: Sequence[str]) -> None:
    """Refuse a secret that would be written down with a job, and name it without its value."""
    for line in lines:
        if match := _SECRET.search(line):
            raise UserError(
                f"{option} holds {match[1]}, which may be a secret and would stand in the submitted script; "
                f"export it in the shell that submits instead: it is passed on"
            )


def _refuse_logins(option: str, lines: Sequence[str]) -> None:
    """Refuse a URL with a password or a token, and name it without that."""
    for line in lines:
        if match := _LOGIN.search(line):
            raise UserError(
                f"{option} holds a URL with a password or a token ({match[0].partition('://')[0]}://...), which "
                "would stand in the submitted script; export it in the shell that submits instead: it is passed on"
            )


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Submit a job of the program."""

    cluster: str = "local"
    """A name in launch/clusters/, or a YAML file of your own."""
    nodes: int = 1
    """Nodes of the job; a run may go on with another number."""
    sweep: tuple[Path, ...] = ()
    """Recipes to try in turn, each after the others and in a run folder of its own below run.folder: a job array."""
    parallel: int = 256
    """Jobs of a sweep that may run at the same time."""
    job_name: str | None = None
    """Name in the queue; None: the program and the run folder's name."""
    skip_check: bool = False
    """Submit without letting the program look at the recipe before; that takes seconds, and knows all architectures."""
    dry_run: Annotated[bool, tyro.conf.arg(help="Only show what would be submitted and run.")] = False

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.parallel < 1:
            raise UserError(f"nodes and parallel must be at least 1, got {self.nodes} and {self.parallel}")


def processes_per_node(cluster: ClusterConfig) -> int:
    """Training processes that a node starts."""
    return cluster.processes_per_node or max(1, cluster.gpus_per_node or 0)


def read_cluster(name: str, *, changes: tuple[str, ...] = ()) -> ClusterConfig:
    """Read the cluster called ``name``, or that in a file of this name, with ``changes`` such as `--partition x`.

    Raises:
        UserError: there is no such cluster; the message lists those there are.
    """
    path = CLUSTERS / f"{name}.yaml" if "/" not in name and not name.endswith(".yaml") else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in CLUSTERS.glob("*.yaml")))
        raise UserError(f"--cluster takes one of {names}, or a YAML file, got {name!r}: {path} does not exist")
    cluster = parse(ClusterConfig, ["--recipe", str(path), *changes])
    if cluster.gpus_per_node is None:
        return dataclasses.replace(cluster, gpus_per_node=_gpus_here() if cluster.scheduler == "local" else 0)
    return cluster


def _gpus_here() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
