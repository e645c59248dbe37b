"""`launch/main.py verify-resume`: the proof that resuming is exact, as a job on one node of the cluster that will train."""

import dataclasses
from collections.abc import Sequence

import tyro

from engine.errors import UserError
from launch.config import ClusterConfig, RestartConfig, SubmitOptions, processes_per_node
from launch.program_calls import PROOF, Call, check_call


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProofOptions(SubmitOptions):
    """Prove on a node that a run which is killed and started again ends as one left alone: give a pretraining's words."""

    steps: int = 12
    """Steps of the whole run; it is killed after half of them."""
    moved_processes: int | None = None
    """Processes of the moved run's second half; None: another number that divides the micro-batches, if there is one."""


def parse_options(words: Sequence[str]) -> ProofOptions:
    """Return the proof's own options.

    Raises:
        UserError: more than one node is asked for, or a sweep.
    """
    options = tyro.cli(ProofOptions, args=list(words), prog="launch/main.py verify-resume")
    if options.nodes > 1 or options.sweep:
        got = "--sweep" if options.sweep else f"--nodes {options.nodes}"
        raise UserError(f"verify-resume runs one recipe on all GPUs of one node, got {got}")
    if options.steps < 2:
        raise UserError(f"--steps must be at least 2, to be killed between them, got {options.steps}")
    return options


def proof_call(options: ProofOptions, words: Sequence[str], *, cluster: ClusterConfig) -> Call:
    """Return the call of the proof; its job's files lie beside its run folder, which has to be new."""
    processes = processes_per_node(cluster)
    if cluster.gpus_per_node and (options.moved_processes or 0) > processes:
        raise UserError(f"--moved-processes {options.moved_processes}, but a node has {processes} GPUs")
    call = check_call("pretrain", words, num_processes=processes)
    own = [PROOF, *call.words, "--steps", str(options.steps), "--processes", str(processes)]
    if options.moved_processes is not None:
        own += ["--moved-processes", str(options.moved_processes)]
    folder = call.folder.with_name(f"{call.folder.name}.job")
    return dataclasses.replace(call, words=tuple(own), folder=folder, starter="python")


def without_restarts(cluster: ClusterConfig) -> ClusterConfig:
    """Return the cluster as a proof needs it: one that was disturbed from outside has to be begun anew."""
    return dataclasses.replace(cluster, restart=RestartConfig(limit=0, limit_stopped_without_progress=0))
