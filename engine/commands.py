"""The commands of a program: which there are, their options and help, and what runs them.

Options and what runs are named as ``module:name`` and imported when they are needed, so that help needs no torch.

    COMMANDS = {
        "train": Command("train", options="pretrain.config:PretrainConfig", run="pretrain.commands:run_training"),
        "status": Command("show a run", options="engine.commands:ExistingRun", run="engine.run.status:show_status"),
    }
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from engine.errors import UserError
from engine.extensions import load_extensions
from engine.recipe import check_finite, expand_home, on_rank_zero, origins, parse

WIDTH = 100
"""Columns of an overview."""


@dataclass(frozen=True)
class Command:
    """One command of a program."""

    summary: str
    """What it does, for the overview."""
    options: str
    """Dataclass of its options, or a function that makes them of (arguments, program name), as ``module:name``."""
    run: str
    """Function that takes the options, as ``module:name``."""
    _: dataclasses.KW_ONLY
    usage: str = ""
    """Its arguments in the overview."""
    recipes: bool = False
    """Whether its options may be read from files, too (``--recipe``)."""
    everyday: tuple[str, ...] = ()
    """Options that everybody needs, as ``section.field`` of the dataclass; help shows them first."""
    documented: str = ""
    """Dataclass with the everyday options, as ``module:name``, where ``options`` is a function."""


@dataclass(frozen=True)
class ExistingRun:
    """Look at one run."""

    folder: tyro.conf.Positional[Path]
    """Run folder."""

    def check(self, program: str) -> None:
        """Refuse a run folder that is not there.

        Raises:
            UserError: it is not.
        """
        if not self.folder.is_dir():
            raise UserError(f"{program} takes one run folder that exists, got {self.folder}")


EXISTING_RUN = "engine.commands:ExistingRun"
STATUS = Command(
    "show how far a run is, its speed and its last checkpoint",
    options=EXISTING_RUN,
    run="engine.run.status:show_status",
    usage="RUN",
)


def run_program(
    commands: Mapping[str, Command], *, about: str, default: str | None = None, argv: Sequence[str] | None = None
) -> None:
    """Run the command that the first argument names, or the default one.

    ``--help`` alone shows the overview, behind a command that command's options.

    Raises:
        UserError: there is no such command.
    """
    arguments = load_extensions([expand_home(each) for each in (sys.argv[1:] if argv is None else argv)])
    program = program_name()
    if (not arguments and default is None) or arguments in (["-h"], ["--help"]):
        say(overview(commands, program=program, about=about, default=default))
        return
    if len(arguments) == 2 and arguments[0] in ("-h", "--help"):
        arguments.reverse()  # help of the command behind it
    name = default
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    elif _ends_in_command(arguments, commands):
        raise UserError(f"the command comes first: {program} {arguments[-1]} {' '.join(arguments[:-1])}")
    if name is None or name not in commands:
        raise UserError(_unknown(name or arguments[0], commands))
    try:
        options = parse_options(commands[name], arguments, program=f"{program} {name}")
        resolve(commands[name].run)(options)
    except UserError as error:
        error.args = (origins(str(error), arguments),)
        raise


def parse_options(command: Command, arguments: Sequence[str], *, program: str) -> Any:
    """Make a command's options of its arguments.

    Raises:
        UserError: they name a run folder that is not there.
    """
    options = resolve(command.options)
    if not isinstance(options, type):
        return options(arguments, program)
    about = inspect.getdoc(options) or command.summary
    if command.everyday:
        about += "\n\nEveryday options:\n" + "\n".join(_everyday(options, command.everyday))
    if command.recipes:
        return parse(options, arguments, program=program, about=about)
    values = tyro.cli(options, args=arguments, prog=program, description=about, console_outputs=on_rank_zero())
    check_finite(values)
    if isinstance(values, ExistingRun):
        values.check(program)
    return values


def overview(commands: Mapping[str, Command], *, program: str, about: str, default: str | None) -> str:
    """Name all commands, and the everyday options of the default one."""
    shown = {f"{name} {command.usage}".strip(): command.summary for name, command in commands.items()}
    width = max(map(len, shown)) + 2
    lines = [about, "", f"usage: {program} {'[COMMAND]' if default else 'COMMAND'} [OPTIONS]", "", "commands:"]
    for head, summary in shown.items():
        note = f"{summary} (the default)" if default is not None and head.split()[0] == default else summary
        lines += textwrap.wrap(note, WIDTH, initial_indent=f"  {head:{width}}", subsequent_indent=" " * (width + 2))
    lines += ["", f"`{program} COMMAND --help` lists a command's options."]
    if default is not None and commands[default].everyday:
        lines += ["", f"everyday options of {default} (all of them: `{program} {default} --help`):"]
        options = resolve(commands[default].documented or commands[default].options)
        lines += _everyday(options, commands[default].everyday)
    return "\n".join(lines)


def option_help(options: type, name: str) -> str:
    """Explain an option: the first sentence below its field, with the default; ``name`` is ``section.field``."""
    *sections, field = name.split(".")
    values: Any = options
    for section in sections:  # whose defaults here may be others than those of its class
        factory = next(each.default_factory for each in dataclasses.fields(options) if each.name == section)
        options = get_type_hints(options)[section]
        values = options if factory is dataclasses.MISSING else factory()
    default = getattr(values, field, dataclasses.MISSING)
    sentence = " ".join(field_docs(options)[field].split()).split(". ")[0].rstrip(".")
    return f"{sentence} (required)" if default is dataclasses.MISSING else f"{sentence} (default: {default})"


def resolve(name: str) -> Any:
    """Import what ``module:name`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def program_name() -> str:
    """Name the program as a user starts it from the repository, such as ``pretrain/main.py``."""
    path = Path(sys.argv[0])
    return f"{path.resolve().parent.name}/{path.name}"


def say(text: str) -> None:
    """Write a text for the user, on rank 0 only."""
    if on_rank_zero():
        sys.stdout.write(text + "\n")


def _ends_in_command(arguments: Sequence[str], commands: Mapping[str, Command]) -> bool:
    """Whether a command stands behind its options; what follows an option, or is there as a file, is a value."""
    if len(arguments) < 2 or arguments[-1] not in commands:
        return False
    return not arguments[-2].startswith("-") and not Path(arguments[-1]).exists()


def _everyday(options: type, names: Sequence[str]) -> list[str]:
    shown = {"--" + name.replace("_", "-"): option_help(options, name) for name in names}
    width = max(map(len, shown)) + 2
    lines: list[str] = []
    for option, text in shown.items():
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {option:{width}}", subsequent_indent=" " * (width + 2))
    return lines


def field_docs(options: type) -> dict[str, str]:
    """Read the strings below the fields of a dataclass, those of its parents included."""
    docs: dict[str, str] = {}
    for owner in reversed(options.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[ast.unparse(field.target)] = str(text.value.value)
    return docs


def _unknown(name: str, commands: Mapping[str, Command]) -> str:
    close = difflib.get_close_matches(name, commands, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(commands)}"
    return f"there is no command {name!r}; {advice}"
