"""The programs that can be submitted, and the checks of their command lines before anything is queued.

Imports no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from data.remote.locations import check_location, is_remote
from data.sources.config import Write
from engine.config import micro_batches_of
from engine.errors import UserError
from engine.extensions import loaded_extensions
from engine.recipe import dump, parse
from engine.run.folder import changed_fields, check_run_place, checkpoint_steps, read_recipe
from engine.run.lock import describe, find_holder
from finetune.tasks import TASKS, choose_task
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
Starter = Literal["accelerate", "torchrun", "python"]
PROGRAMS = ("pretrain", "finetune", "data")
DOCTOR = "launch/doctor"
PROOF = "verify-resume"
"""The command of the pretraining program that proves and does not train."""
RECIPE = "RECIPE"
"""Stands in a call's arguments for the file with its resolved recipe."""
STARTERS: dict[str, Starter] = {
    "auto": "accelerate",
    "deepspeed": "accelerate",
    "ddp": "torchrun",
    "single": "python",
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One checked command line of a program."""

    program: str
    """`pretrain`, `finetune`, `data` or DOCTOR."""
    arguments: tuple[str, ...]
    """What follows `main.py` in the job; RECIPE stands for the resolved recipe's file."""
    folder: Path
    """The run folder."""
    recipe: str
    """The resolved recipe, as YAML; empty for programs without."""
    starter: Starter
    """How its processes start."""
    zero_stage: int
    """DeepSpeed's ZeRO stage, for accelerate."""
    extensions: tuple[Path, ...] = ()
    """Python files from outside the packages that the program imports first."""

    @property
    def script(self) -> Path:
        """The program's file."""
        return ROOT / self.program / "main.py"

    @property
    def is_proof(self) -> bool:
        """Whether it is no training but the proof that resuming is exact."""
        return self.arguments[:1] == (PROOF,)

    @property
    def saves_on_warning(self) -> bool:
        """Whether its processes save when SIGUSR2 comes; others are ended by SIGTERM."""
        return self.program != "data" and not self.is_proof


def check_call(program: str, arguments: Sequence[str], *, num_processes: int) -> Call:
    """Read a program's command line, with every check that needs neither torch nor a GPU.

    Raises:
        UserError: what the program itself would refuse: processes that do not divide the micro-batches, shards that
            are not there, another recipe than the one that made the checkpoints in the run folder, or a run folder in
            use.
        SystemExit: the options do not parse; what is wrong has been printed.
    """
    task, options = choose_task(arguments) if program == "finetune" else (None, arguments)
    config: Any = parse(PretrainConfig if task is None else TASKS[task].config, options, program=f"{program}/main.py")
    micro_batches_of(
        0, world_size=num_processes, batch_size=config.data.batch_size, micro_batch_size=config.data.micro_batch_size
    )
    for location in _shards(config):
        _check_shards(location)
    _check_run_folder(config)
    return Call(
        program=program,
        arguments=("--recipe", RECIPE),
        folder=config.run.folder,
        recipe=dump(config),
        starter=STARTERS[config.distributed.engine],
        zero_stage=config.distributed.zero_stage,
        extensions=tuple(loaded_extensions()),
    )


def check_write(arguments: Sequence[str]) -> Call:
    """Read a command line of `data/main.py write`; killed, the same command goes on.

    Raises:
        UserError: it is another of the data program's commands, or the source is not there.
        SystemExit: the options do not parse; what is wrong has been printed.
    """
    if not arguments or arguments[0] != "write":
        raise UserError(
            f"data takes the command write, got {arguments[0] if arguments else 'nothing'}; "
            "run the others where you are"
        )
    options = tyro.cli(Write, args=arguments[1:], prog="data/main.py write")
    if options.format != "scenes" and options.source != "scenes" and not Path(check_location(options.source)).exists():
        raise UserError(
            f"--source {options.source} does not exist here; it must lie where this machine and the nodes see it"
        )
    folder = options.out.with_name(f"{options.out.name}.job")
    return Call(
        program="data",
        arguments=tuple(arguments),
        folder=folder,
        recipe="",
        starter="python",
        zero_stage=0,
        extensions=tuple(loaded_extensions()),
    )


def _shards(config: Any) -> Iterator[str]:
    """Yield where the labelled and unlabelled shards of a config lie."""
    yield from config.data.shards
    probe = getattr(config, "probe", None)
    labelled = [getattr(config, "val_shards", None)]
    if probe is not None:
        labelled += [probe.train_shards, probe.val_shards]
    yield from (str(location) for location in labelled if location is not None)


def _check_shards(location: str) -> None:
    """Refuse a folder without shards and a URL that holds a secret."""
    location = check_location(location)
    if not is_remote(location) and not (Path(location) / "manifest.json").is_file():
        raise UserError(
            f"{location} holds no shards: expected manifest.json in it, which `data/main.py write` or `index` makes; "
            f"the folder must lie on a file system that this machine and the nodes share"
        )


def _check_run_folder(config: Any) -> None:
    """Refuse a run folder that somebody runs in, or whose checkpoints another recipe made."""
    folder: Path = config.run.folder
    check_run_place(folder)
    holder = find_holder(folder)
    if holder is not None:
        raise UserError(
            f"run folder {folder} is in use by {describe(holder)}; wait, stop it (touch {folder / 'STOP'}), or choose "
            f"another --run.folder"
        )
    if checkpoint_steps(folder / "checkpoints") and (folder / "config.yaml").is_file():
        changes = changed_fields(config, stored=read_recipe(folder / "config.yaml"))
        if changes:
            raise UserError(
                f"{folder / 'config.yaml'} made the checkpoints in this folder and differs from what is asked: "
                f"{'; '.join(changes)}. Use the stored values, another --run.folder, or --run.branch-from CHECKPOINT"
            )
