"""How a program ends when its user has to act: one line, and an exit code that is not 0."""

import functools
import os
import sys
import time
from collections.abc import Callable

RANK_ZERO_SPEAKS_FIRST_S = 2.0


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Return ``main`` with every ``ValueError`` turned into ``error: ...`` on standard error and exit code 1.

    Where all processes fail alike, the launcher ends the others as soon as rank 0 has spoken.
    """

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except ValueError as error:
            if os.environ.get("RANK", "0") != "0":
                time.sleep(RANK_ZERO_SPEAKS_FIRST_S)
            sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
            sys.stderr.flush()
            sys.exit(1)

    return guarded
