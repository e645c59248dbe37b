"""How a program ends when its user has to act: one line, and an exit code that is not 0."""

import errno
import functools
import os
import sys
import time
from collections.abc import Callable

RANK_ZERO_SPEAKS_FIRST_S = 2.0
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk, a quota or a file that is full."""


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Return ``main`` with every ``ValueError`` and a full disk turned into ``error: ...`` on standard error and exit code 1.

    Where all processes fail alike, the launcher ends the others as soon as rank 0 has spoken.
    """

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except ValueError as error:
            _end(str(error))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            _end(f"{error}; free some space, then start again: a run goes on from its last checkpoint")

    return guarded


def _end(words: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_ZERO_SPEAKS_FIRST_S)
    sys.stderr.write(f"error: {' '.join(words.split())}\n")
    sys.stderr.flush()
    sys.exit(1)
