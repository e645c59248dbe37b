"""The pretraining program on a slow disk: ``benchmarks/drills/kills.py`` starts it in place of ``pretrain/main.py``.

The disk is simulated: each fsync takes ``SECONDS`` longer, before and after the real one, so that kills meet
checkpoints that are half written for most of their time.
"""

import os
import time

from pretrain.app import main

SECONDS = 0.4


def slow_fsync(descriptor: int, _fsync: object = os.fsync) -> None:
    """Write what is in memory to the disk, late."""
    time.sleep(SECONDS / 2)
    _fsync(descriptor)  # pyright: ignore[reportCallIssue]
    time.sleep(SECONDS / 2)


if __name__ == "__main__":
    os.fsync = slow_fsync
    main()
