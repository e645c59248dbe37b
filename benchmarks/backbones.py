"""Entry point: ``python benchmarks/backbones.py`` measures what ``benchmarks/secvit.py`` describes."""

import os
import sys

if not __package__:  # started as a script: search the repository root, not this folder, whose file hides the package
    _here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [os.path.dirname(_here), *(entry for entry in sys.path if entry != _here)]  # noqa: PTH120

from benchmarks.secvit import main

if __name__ == "__main__":
    main()
