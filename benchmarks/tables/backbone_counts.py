"""Count all architectures of the zoo again for ``backbones/main.py list``.

``python benchmarks/tables/backbone_counts.py`` writes them down.
"""

import json
from dataclasses import asdict

from backbones.commands.counting import count
from backbones.commands.counts import COUNTS
from backbones.registry.zoo import ZOO


def main() -> None:
    """Write the file that the list reads, one line an architecture."""
    lines = []
    for name in (name for entry in ZOO.values() for name in entry.names):
        counts = count(name)
        assert counts is not None, name
        lines.append(f"{json.dumps(name)}: {json.dumps(asdict(counts))}")
    COUNTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
