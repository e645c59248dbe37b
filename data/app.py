"""The data program: write shards, index those of others, verify and show them, measure how fast they are read."""

from engine.commands import Command, run_program
from engine.errors import one_line_errors

COMMANDS = {
    "write": Command(
        "write images of any source into shards",
        options="data.sources.config:Write",
        run="data.commands.write:run_write",
        usage="--source SOURCE --out DIR",
    ),
    "index": Command(
        "make manifest and index for tars that were written elsewhere",
        options="data.commands.config:Index",
        run="data.commands.index:run_index",
        usage="--source TARS --out DIR",
    ),
    "verify": Command(
        "check sizes, digests, images, keys and labels",
        options="data.commands.config:Verify",
        run="data.commands.verify:run_verify",
        usage="--shards SHARDS",
    ),
    "show": Command(
        "draw a contact sheet and count the classes",
        options="data.commands.config:Show",
        run="data.commands.show:run_show",
        usage="--shards SHARDS",
    ),
    "bench": Command(
        "measure how many images a second one core prepares",
        options="data.commands.config:Bench",
        run="data.commands.bench:run_bench",
        usage="SHARDS",
    ),
}


@one_line_errors
def main() -> None:
    """Run the command that the command line names."""
    run_program(COMMANDS, about=__doc__ or "")
