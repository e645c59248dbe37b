"""Options of the commands beside training. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from engine.errors import UserError
from engine.recipe import on_rank_zero, parse
from pretrain.config import PretrainConfig


@dataclass(frozen=True)
class ReplayOptions:
    """Repeat a micro-batch that was not finite, and show where it goes wrong."""

    record: tyro.conf.Positional[Path]
    """Record of the micro-batch: runs/x/non_finite/step-.../micro-batch-....json."""


@dataclass(frozen=True, kw_only=True)
class ProofRuns:
    """Prove on this machine that a killed run ends as one left alone; exit code 1 where it does not.

    Takes a recipe and the options of train as well, such as --recipe FILE and --data.shards DIR.
    """

    steps: int = 12
    """Steps of the whole run; it is killed after half of them."""
    processes: int | None = None
    """Training processes on this machine; None: one for each GPU, or 2 without GPUs."""
    moved_processes: int | None = None
    """Processes of the moved run's second half; None: another number that divides the micro-batches."""

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise UserError(f"--steps must be at least 2, to be killed between them, got {self.steps}")


def parse_proof(argv: Sequence[str], program: str) -> tuple[ProofRuns, PretrainConfig]:
    """Separate what is said of the proof's runs from the recipe that they follow."""
    runs, rest = tyro.cli(ProofRuns, args=argv, prog=program, return_unknown_args=True, console_outputs=on_rank_zero())
    return runs, parse(PretrainConfig, rest, program=program)


def parse_without_shards(argv: Sequence[str], program: str) -> PretrainConfig:
    """Make a recipe of the arguments for a command that reads no data."""
    return parse(PretrainConfig, ["--data.shards", "none", *argv], program=program)
