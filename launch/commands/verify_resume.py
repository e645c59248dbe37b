"""`launch/main.py verify-resume`: proves that resuming is exact, in a job on one node of the cluster."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import UserError
from launch.commands.arguments import Arguments, read_arguments
from launch.commands.submit import Submission
from launch.config import ClusterConfig, RestartConfig, SubmitOptions, processes_per_node
from launch.program_calls import PROOF, Call, check_call


@dataclass(frozen=True, kw_only=True)
class ProofOptions(SubmitOptions):
    """Prove on a node that a run which is killed and started again ends as one left alone.

    Give the options of the pretraining to prove it for.
    """

    steps: int = 12
    """Steps of the whole run; it is killed after half of them."""
    moved_processes: int | None = None
    """Processes of the moved run's second half; None: another number that divides the micro-batches."""


def parse_proof(argv: Sequence[str], program: str) -> Submission:
    """Check a job that proves.

    Raises:
        UserError: more than one node, a sweep, or what a node cannot run.
    """
    arguments = read_arguments(ProofOptions, argv, program=program)
    options = arguments.options
    if options.nodes > 1 or options.sweep:
        got = "--sweep" if options.sweep else f"--nodes {options.nodes}"
        raise UserError(f"verify-resume runs one recipe on all GPUs of one node, got {got}")
    if options.steps < 2:
        raise UserError(f"--steps must be at least 2, to be killed between them, got {options.steps}")
    return Submission(
        calls=[_proof_call(arguments)], cluster=_without_restarts(arguments.cluster), options=arguments.options
    )


def _proof_call(arguments: Arguments[ProofOptions]) -> Call:
    """Write the call of the proof; its job's files lie beside its run folder, which has to be new."""
    options, cluster = arguments.options, arguments.cluster
    processes = processes_per_node(cluster)
    if cluster.gpus_per_node and (options.moved_processes or 0) > processes:
        raise UserError(f"--moved-processes {options.moved_processes}, but a node has {processes} GPUs")
    call = check_call("pretrain", arguments.program, num_processes=processes)
    own = [PROOF, *call.arguments, "--steps", str(options.steps), "--processes", str(processes)]
    if options.moved_processes is not None:
        own += ["--moved-processes", str(options.moved_processes)]
    folder = call.folder.with_name(f"{call.folder.name}.job")
    return dataclasses.replace(call, arguments=tuple(own), folder=folder, starter="python")


def _without_restarts(cluster: ClusterConfig) -> ClusterConfig:
    """The cluster as a proof needs it: one that was disturbed from outside has to be begun anew."""
    return dataclasses.replace(cluster, restart=RestartConfig(limit=0, limit_stopped_without_progress=0))
