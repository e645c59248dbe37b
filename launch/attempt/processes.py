"""How the training processes of a node start, and where they meet. Pure: command lines from numbers."""

import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.config import ClusterConfig, processes_per_node
from launch.program_calls import Starter

PORTS = 20_000
SUPERVISOR = "LAUNCH_SUPERVISOR"
"""Environment variable with the process that starts and watches a node's training processes."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one node stands in a job."""

    node: int
    """Its number, from 0."""
    nodes: int
    """How many there are."""
    processes: int
    """Training processes of each."""
    master: str
    """Name or address of node 0."""
    port: int
    """Where the processes meet on node 0."""


def start_command(
    program: Sequence[str], *, starter: Starter, zero_stage: int, place: Place, python: Sequence[str]
) -> list[str]:
    """Write the command that starts one node's training processes; each node runs its own, none starts another's.

    Args:
        program: script and its options.
        starter: accelerate (DeepSpeed), torchrun (DDP) or python (one process).
        zero_stage: DeepSpeed's ZeRO stage.
        place: this node's place.
        python: the interpreter, after a container's command if there is one.
    """
    match starter:
        case "accelerate":
            launcher = ["accelerate.commands.accelerate_cli", "launch", "--use_deepspeed"]
            launcher += ["--zero_stage", str(zero_stage)]
            launcher += ["--deepspeed_multinode_launcher", "standard", "--rdzv_backend", "static"]
            launcher += ["--num_machines", str(place.nodes), "--machine_rank", str(place.node)]
            launcher += ["--num_processes", str(place.nodes * place.processes)]
            launcher += ["--main_process_ip", place.master, "--main_process_port", str(place.port)]
            launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the recipe's precision is what runs
        case "torchrun":
            launcher = ["torch.distributed.run", "--nnodes", str(place.nodes), "--node-rank", str(place.node)]
            launcher += ["--nproc-per-node", str(place.processes)]
            launcher += ["--master-addr", place.master, "--master-port", str(place.port)]
        case "python":
            return [*python, *program]
    return [*python, "-m", *launcher, *program]


def python_command(cluster: ClusterConfig) -> list[str]:
    """The command that starts Python on a node: that of the container, or this one."""
    return [*shlex.split(cluster.container), "python"] if cluster.container else [sys.executable]


def place_of(cluster: ClusterConfig, *, node: int, nodes: int, host: str, job_number: int, restarts: int) -> Place:
    """Number a node within its job; all nodes of a job compute the same port, and another one after each restart."""
    return Place(
        node=node,
        nodes=nodes,
        processes=processes_per_node(cluster),
        master=host,
        port=cluster.master_port + (job_number * 31 + restarts) % PORTS,
    )


def master_host(hosts: Sequence[str], environment: Mapping[str, str]) -> str:
    """Node 0's name or, where that does not resolve, the address that srun was called from, which is node 0's."""
    if len(hosts) == 1:
        return "127.0.0.1"
    try:
        socket.getaddrinfo(hosts[0], None)
    except OSError:
        return environment.get("SLURM_LAUNCH_NODE_IPADDR", hosts[0])
    return hosts[0]


def process_environment(cluster: ClusterConfig) -> dict[str, str]:
    """What the cluster's file adds to every process's environment."""
    on_cpu = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"} if not cluster.gpus_per_node else {}
    assignments = (assignment.partition("=") for assignment in cluster.environment)
    return {**on_cpu, **{name: value for name, _, value in assignments}}
