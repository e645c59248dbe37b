"""Entry point of the checks on the nodes, under the same launcher as training; ``launch/main.py doctor`` starts it."""

import os
import sys

if not __package__:  # started as a script: search the repository root, not this folder
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(_here)), *(entry for entry in sys.path if entry != _here)]

from launch.doctor.checks import main

if __name__ == "__main__":
    main()
