"""One command line for three readers: the launcher, the cluster's file, and the program that is submitted."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import tyro

from launch.config import ClusterConfig, SubmitOptions, read_cluster

Options = TypeVar("Options", bound=SubmitOptions)
OTHER_OPTIONS = """--cluster.OPTION VALUE changes one line of the cluster's file for this job; `launch/main.py
cluster-options` lists them. All other options are the program's."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Generic[Options]):
    """A command line of the launcher, separated by reader."""

    options: Options
    """The launcher's options."""
    cluster: ClusterConfig
    """The cluster that they name, with the changes for this job."""
    program: list[str]
    """The program's arguments; ``--help`` is among them, so that the program adds its own."""


def read_arguments(options: type[Options], argv: Sequence[str], *, program: str) -> Arguments[Options]:
    """Separate a command line, and show the launcher's part of ``--help``."""
    own, changes, rest = split_arguments(argv, options=options)
    show_help_if_wanted(options, argv, program=program)
    launcher = tyro.cli(options, args=own, prog=program)
    return Arguments(options=launcher, cluster=read_cluster(launcher.cluster, changes=tuple(changes)), program=rest)


def split_arguments(
    argv: Sequence[str], *, options: type[SubmitOptions] = SubmitOptions
) -> tuple[list[str], list[str], list[str]]:
    """Separate the launcher's options, the changes of the cluster's file, and the program's arguments."""
    names = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)}
    own: list[str] = []
    cluster: list[str] = []
    program: list[str] = []
    reader = program  # values go where their option went
    for argument in argv:
        name = argument.partition("=")[0].replace("_", "-")
        if argument.startswith("--"):
            reader = own if name in names else cluster if name.startswith("--cluster.") else program
        is_change = reader is cluster and argument.startswith("--")
        reader.append(f"--{argument.removeprefix('--cluster.')}" if is_change else argument)
    return own, cluster, program


def show_help_if_wanted(options: type[SubmitOptions], argv: Sequence[str], *, program: str) -> bool:
    """Show the launcher's options where ``--help`` asks for it; tell whether it did."""
    is_wanted = "-h" in argv or "--help" in argv
    if is_wanted:
        with contextlib.suppress(SystemExit):
            tyro.cli(options, args=["--help"], prog=program, description=f"{options.__doc__}\n\n{OTHER_OPTIONS}")
    return is_wanted
