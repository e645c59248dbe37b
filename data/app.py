"""The data program: write shards, index those of others, verify and show them, measure how fast they are read."""

import logging

import tyro
from rich.console import Console

from data.commands.bench import Bench, run_bench
from data.commands.check import Index, Show, Verify, run_index, run_show, run_verify
from data.commands.write import Write, run_write
from engine.errors import one_line_errors

COMMANDS = {"write": Write, "index": Index, "verify": Verify, "show": Show, "bench": Bench}


@one_line_errors
def main() -> None:
    """Run the subcommand that the command line names."""
    console = Console()
    options = tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_ConsoleHandler(console)])
    match options:
        case Write():
            run_write(options, console=console)
        case Index():
            run_index(options, console=console)
        case Verify():
            run_verify(options, console=console)
        case Show():
            run_show(options, console=console)
        case Bench():
            run_bench(options, console=console)


class _ConsoleHandler(logging.Handler):
    """Prints log lines above a progress bar, unbroken, with the level in front where it is more than information."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        self._console.print(level + self.format(record), soft_wrap=True, highlight=False, markup=False)
