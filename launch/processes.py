"""How the training processes of a node start, and where all of them meet. Pure: command lines from numbers."""

import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.config import ClusterConfig, processes_per_node
from launch.programs import Starter

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
    """Return the command that starts one node's training processes; each node runs its own, none starts another's.

    Args:
        program: script and its options.
        starter: accelerate (DeepSpeed), torchrun (DDP) or python (one process).
        zero_stage: DeepSpeed's ZeRO stage.
        place: this node's place.
        python: the interpreter, after the words of a container if there is one.
    """
    match starter:
        case "accelerate":
            words = ["accelerate.commands.accelerate_cli", "launch", "--use_deepspeed", "--zero_stage", str(zero_stage)]
            words += ["--deepspeed_multinode_launcher", "standard", "--rdzv_backend", "static"]
            words += ["--num_machines", str(place.nodes), "--machine_rank", str(place.node)]
            words += ["--num_processes", str(place.nodes * place.processes)]
            words += ["--main_process_ip", place.master, "--main_process_port", str(place.port)]
            words += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the recipe's precision is what runs
        case "torchrun":
            words = ["torch.distributed.run", "--nnodes", str(place.nodes), "--node-rank", str(place.node)]
            words += ["--nproc-per-node", str(place.processes)]
            words += ["--master-addr", place.master, "--master-port", str(place.port)]
        case "python":
            return [*python, *program]
    return [*python, "-m", *words, *program]


def python_words(cluster: ClusterConfig) -> list[str]:
    """Return the words that start Python on a node: that of the container, or this one."""
    return [*shlex.split(cluster.container), "python"] if cluster.container else [sys.executable]


def place_of(cluster: ClusterConfig, *, node: int, nodes: int, host: str, job_number: int, restarts: int) -> Place:
    """Return a node's place; all nodes of a job find the same port, and another one after each restart."""
    return Place(
        node=node,
        nodes=nodes,
        processes=processes_per_node(cluster),
        master=host,
        port=cluster.master_port + (job_number * 31 + restarts) % PORTS,
    )


def master_host(hosts: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return node 0's name, or where that does not resolve, the address that srun was called from, which is node 0's."""
    if len(hosts) == 1:
        return "127.0.0.1"
    try:
        socket.getaddrinfo(hosts[0], None)
    except OSError:
        return environment.get("SLURM_LAUNCH_NODE_IPADDR", hosts[0])
    return hosts[0]


def process_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Return what the cluster's file adds to every process's environment."""
    on_cpu = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"} if not cluster.gpus_per_node else {}
    assignments = (assignment.partition("=") for assignment in cluster.environment)
    return {**on_cpu, **{name: value for name, _, value in assignments}}
