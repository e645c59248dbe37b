"""A real Slurm on this machine: munged, slurmctld and two slurmd on loopback, started for a test, stopped after it.

Needs root and Debian's packages `slurm-wlm` and `munge`. Everything lies in one folder; nothing of the machine's own
configuration is read or changed. Programs find it through `SLURM_CONF`.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch")
START_S = 30.0
CONF = """
ClusterName=drill
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={munge}/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdTimeout=10
KillWait=10
OverTimeLimit=0
InactiveLimit=0
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=1 RealMemory=1000
PartitionName=drill Nodes=n[1-2] Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=n[1-2] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    if os.getuid() != 0:
        return "Slurm's daemons need root"
    return None


class Cluster:
    """Two nodes, n1 and n2, of one core each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._munge = Path(tempfile.mkdtemp(prefix="munge-"))  # where its own user may go, unlike a test's folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons, and wait until both nodes are idle."""
        self.folder.chmod(0o755)
        for name in ("state", "spool.n1", "spool.n2"):
            (self.folder / name).mkdir()
        ports = _free_ports(3)
        (self.folder / "slurm.conf").write_text(
            CONF.format(
                host=socket.gethostname(),
                munge=self._munge,
                folder=self.folder,
                controller=ports[0],
                first=ports[1],
                second=ports[1] + 1,
            )
        )
        self._start_munge()
        self._daemon("slurmctld", "slurmctld", "-D")
        for node in ("n1", "n2"):
            self.start_node(node)
        self._until_idle()

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, also again after it was killed."""
        self._daemon(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd with SIGKILL; what it started runs on."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm's and return what it printed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.run("scancel", "--user", "root", check=False)
        deadline = time.monotonic() + 30
        while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
            time.sleep(0.5)
        for process in reversed(self._daemons.values()):
            process.terminate()
        for process in self._daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._munge, ignore_errors=True)

    def _start_munge(self) -> None:
        folder = self._munge
        folder.chmod(0o755)
        subprocess.run(["mungekey", "--create", f"--keyfile={folder}/key"], env=self.environment, check=True)
        subprocess.run(["chown", "-R", "munge:munge", str(folder)], check=True)
        files = [f"--{name}={folder}/{file}" for name, file in MUNGE_FILES.items()]
        self._daemon("munged", "runuser", "-u", "munge", "--", "munged", "--foreground", "--force", *files)
        self._until(lambda: (folder / "socket").exists(), "munged")

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def _until_idle(self) -> None:
        self._until(
            lambda: self.run("sinfo", "-h", "-N", "-p", "drill", "-o", "%T", check=False).split() == ["idle", "idle"],
            "Slurm",
        )

    def _until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} did not start in {START_S:.0f} s; its logs are in {self.folder}")
            time.sleep(0.1)


MUNGE_FILES = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in an empty folder, and put it away at the end."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on, the last two of them one after the other."""
    for first in range(17_001, 18_000, count):
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
