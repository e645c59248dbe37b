"""The data program: write shards, index those of others, verify and show them, measure how fast they are read."""

import tyro

from data.commands.bench import run_bench
from data.commands.config import Bench, Index, Show, Verify
from data.commands.index import run_index
from data.commands.show import run_show
from data.commands.verify import run_verify
from data.commands.write import run_write
from data.sources.config import Write
from engine.errors import one_line_errors

COMMANDS = {
    "write": (Write, run_write),
    "index": (Index, run_index),
    "verify": (Verify, run_verify),
    "show": (Show, run_show),
    "bench": (Bench, run_bench),
}


@one_line_errors
def main() -> None:
    """Run the command that the command line names."""
    options = tyro.extras.subcommand_cli_from_dict({name: each[0] for name, each in COMMANDS.items()})
    next(run for kind, run in COMMANDS.values() if isinstance(options, kind))(options)
