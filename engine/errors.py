"""How a program ends: in one line where its user has to act, with a traceback where we have.

``UserError`` is what a user can get wrong; some errors of the operating system are the user's, too. Any other exception
is a bug, and its traceback says where.
"""

import errno
import functools
import os
import sys
import time
from collections.abc import Callable

RANK_ZERO_SPEAKS_FIRST_S = 2.0
INTERRUPTED, BROKEN_PIPE = 130, 141
"""Exit codes of programs that SIGINT and SIGPIPE end, as shells count them."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk, a quota or a file that is full."""
REMEDIES = {
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOTDIR: "a part of it is a file where a folder is needed: choose another place",
    errno.ENOENT: "check its name",
    errno.EEXIST: "move it away or choose another name",
    errno.ENOTEMPTY: "empty it or choose another folder",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "the machine has too many open files: close other programs",
    errno.EIO: "the disk or its server fails: look at the system's log",
    errno.ESTALE: "the network file system lost it: mount it again",
}
"""What a user can do about an error of the system at a path."""


class UserError(ValueError):
    """What a user can get wrong: says what was expected, what came and what to do, and is shown as one line."""


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """End ``main`` with ``error: ...`` on standard error and exit code 1 where the user has to act.

    That is a ``UserError``, a full disk, and what the system says of a path (``REMEDIES``). Ctrl-C and a reader of the
    output that has gone (``| head``) end it silently. Everything else keeps its traceback. Where all processes fail
    alike, the launcher ends the others as soon as rank 0 has spoken.
    """

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
            sys.stdout.flush()
        except UserError as error:
            _end(str(error))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
            sys.exit(BROKEN_PIPE)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except OSError as error:
            message = explain(error)
            if message is None:
                raise
            _end(message)

    return guarded


def explain(error: OSError) -> str | None:
    """Say in one line what the system refused, where, and what to do; None where no user could tell."""
    if error.errno in NO_SPACE:
        return f"{error}; free some space, then start again: a run goes on from its last checkpoint"
    if error.filename is None or error.errno not in REMEDIES:
        return None
    return f"{os.fsdecode(error.filename)}: {error.strerror}; {REMEDIES[error.errno]}"


def _end(message: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_ZERO_SPEAKS_FIRST_S)
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.stderr.flush()
    sys.exit(1)
