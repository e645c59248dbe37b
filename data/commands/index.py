"""`data/main.py index`: tars that were written elsewhere become a data set, as they are."""

from data.commands.config import Index
from data.commands.console import say, start_console
from data.commands.write import say_written
from data.shards.class_names import find_class_names, read_class_names
from data.shards.scan import index_shards
from data.shards.tar_files import find_tars


def run_index(options: Index) -> None:
    """Index shards that were written elsewhere, and say what was passed over."""
    console = start_console()
    tars = find_tars(options.source, pattern=options.pattern)
    names = options.classes or find_class_names(options.source) or find_class_names(tars[0].parent)
    manifest, ignored = index_shards(
        tars,
        out=options.out,
        classes=None if names is None else read_class_names(names),
        first_class=options.first_class,
        processes=options.processes,
    )
    for reason, count in ignored.most_common(10):
        say(console, f"passed over {count} x {reason}")
    say_written(manifest, folder=options.out, console=console)
