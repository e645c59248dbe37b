"""Options of `data/main.py write` as tests of sources need them."""

from pathlib import Path

from data.sources.config import Write


def write_options(source, *, names=None, **options):
    """Make the options for a source; ``names`` are class names, which lie in a file beside it."""
    if names is not None:
        options["classes"] = Path(source).parent / "names.txt"
        options["classes"].write_text("\n".join(names))
    return Write(source=str(source), out=Path("never-written"), processes=1, **options)
