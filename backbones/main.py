"""Entry point: ``python backbones/main.py list|show|clusters|import|export``."""

import os
import sys

if not __package__:  # started as a script: search the repository root, not this folder
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_here), *(entry for entry in sys.path if entry != _here)]

from backbones.app import main

if __name__ == "__main__":
    main()
