"""How a program ends: in one line where its user has to act, with a traceback where we have.

``UserError`` is what a user can get wrong; some errors of the operating system are the user's, too. Any other exception
is a bug, and its traceback says where. A signal that ends a program is named, and what the program waited for; training
takes the signals over (``engine/loop/stop_requests.py``): there they ask for a checkpoint first.
"""

import contextlib
import errno
import functools
import os
import re
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import NoReturn

RANK_ZERO_SPEAKS_FIRST_S = 2.0
INTERRUPTED, BROKEN_PIPE, SIGNALLED = 130, 141, 128
"""Exit codes of programs that SIGINT and SIGPIPE end, as shells count them; signal n gives 128 and n."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""What asks a program to end: schedulers, a terminal that is closed, and schedulers again."""
END_WITHIN_S, CLEANED_WITHIN_S = 6.0, 2.0
"""What a program may take to end after a signal, and after it has said so; then it is ended where it stands."""
REFUSAL = "GREEN_PRETRAIN_REFUSAL"
"""Environment variable that names a file for the message by which a program refuses to go on."""
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
    errno.EIO: "the disk or its server fails: look at the system's log",
    errno.ESTALE: "the network file system lost it: mount it again",
    errno.EBUSY: "another program uses it: wait, or choose another place",
    errno.ENXIO: "it is no regular file: name another one",
    errno.ENODEV: "it is no regular file: name another one",
}
"""What a user can do about an error of the system at a path."""
MACHINE_REMEDIES = {
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "the machine has too many open files: close other programs",
    errno.ENOMEM: "the machine has not that much memory: use fewer processes, smaller images or smaller batches",
    errno.EAGAIN: "the machine starts no more processes: use fewer, or raise the limit: ulimit -u",
}
"""What a user can do about an error of the system at no path."""
_TOO_MANY_FILES = re.compile(r"Too many open files|received 0 items of ancdata")
"""How torch and multiprocessing say it, not as an ``OSError``."""
_GONE = re.compile(r"gloo.*(Connection (closed|reset) by peer|Broken pipe)", re.DOTALL)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class UserError(ValueError):
    """What a user can get wrong: says what was expected, what came and what to do, and is shown as one line."""


class PassingError(UserError):
    """A refusal that may pass by itself, as that of a run folder in use: another try may succeed."""


class Stopped(BaseException):
    """A signal asked for the end; ``str`` says which one, and during what."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.notes: list[str] = []
        self.is_said = False
        """Whether the user has been told."""

    def __str__(self) -> str:
        """Say it for the user."""
        return ", ".join([f"stopped by {signal.Signals(self.number).name}", *self.notes])


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """End ``main`` with ``error: ...`` on standard error and exit code 1 where the user has to act.

    That is a ``UserError``, a full disk or memory, or what the system says of a path (``REMEDIES``). Ctrl-C and a
    reader of the output that has gone (``| head``) end it silently, other signals with a line that names them.
    Everything else keeps its traceback. Where all processes fail alike, the launcher ends the others as soon as rank 0
    has spoken.
    """

    @functools.wraps(main)
    def guarded() -> None:
        try:
            with stopping_at_signals():
                main()
            sys.stdout.flush()
        except UserError as error:
            _refuse(error)
        except Stopped as stop:
            stop.is_said = True
            threading.Thread(target=_end_late, args=(stop, CLEANED_WITHIN_S), daemon=True).start()
            _end(str(stop), code=SIGNALLED + stop.number)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
            sys.exit(BROKEN_PIPE)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except SystemExit as stop:
            if (bug := bug_behind(stop)) is not None:
                raise bug from None
            raise
        except (OSError, RuntimeError, MemoryError) as error:
            if (message := _machine_fault(error)) is None:
                raise
            _end(message)

    return guarded


LIMIT_OF_WAITS: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar(
    "limit_of_waits", default=contextlib.nullcontext
)
"""What training does about signals where it waits: there they do not end the program by themselves."""


@contextlib.contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Name what is waited for within, and let a signal end the wait."""
    try:
        with LIMIT_OF_WAITS.get()():
            yield
    except Stopped as stop:
        stop.notes.append(f"while waiting for {what}")
        raise


@contextlib.contextmanager
def stopping_at_signals() -> Iterator[None]:
    """Raise :class:`Stopped` within where a signal would end the program without a word.

    Signals that are ignored, as by ``nohup``, or handled already are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    program = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        if os.getpid() != program:  # a child that was forked: it has no say of its own
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stopped = Stopped(number)
        threading.Thread(target=_end_late, args=(stopped, END_WITHIN_S), daemon=True).start()
        raise stopped

    taken = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is stop:
                signal.signal(number, signal.SIG_DFL)


def end_at_once(stop: Stopped) -> NoReturn:
    """End this process, whatever its threads do, and say why."""
    if not stop.is_said:
        sys.stderr.write(f"{stop}\n")
        sys.stderr.flush()
    os._exit(SIGNALLED + stop.number)


def explain(error: OSError) -> str | None:
    """Say in one line what the system refused, where, and what to do; None where no user could tell."""
    path = None if error.filename is None else os.fsdecode(error.filename)
    where = "" if path is None else f"{path}: "
    if error.errno in NO_SPACE:
        return f"{where}{error.strerror}; free some space, then start again, or choose another place"
    if error.errno in MACHINE_REMEDIES:
        return f"{where}{error.strerror}; {MACHINE_REMEDIES[error.errno]}"
    if path is None or error.errno not in REMEDIES:
        return None
    return f"{where}{error.strerror}; {REMEDIES[error.errno]}"


@contextlib.contextmanager
def at_path(path: Path) -> Iterator[None]:
    """Name ``path`` in what the system refuses within: a full disk says not where, other errors name a temporary file.

    Libraries written in Rust, such as safetensors, put the system's error into words; it becomes an ``OSError`` again.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def is_refusal(error: BaseException) -> bool:
    """Whether a library raised ``error``, not code of this project or of an extension.

    Libraries refuse values of their users with any exception; what arises in a line of ours is a bug.
    """
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code.co_filename.startswith(("<", *_LIBRARIES))


def bug_behind(stop: SystemExit) -> BaseException | None:
    """Find the bug that tyro took for a fault of the command line: it shows every ``ValueError`` of a config as one."""
    error = stop.__context__
    while error is not None and not isinstance(error, UserError):  # that one was raised on purpose, whatever led to it
        if isinstance(error, ValueError) and not is_refusal(error):
            return error
        error = error.__context__
    return None


def _end_late(stop: Stopped, patience_s: float) -> None:
    """End a program whose threads or children keep it from ending."""
    time.sleep(patience_s)
    end_at_once(stop)


def _machine_fault(error: OSError | RuntimeError | MemoryError) -> str | None:
    """Say in one line what the machine lacks or refuses; None of other errors."""
    if isinstance(error, MemoryError):
        return f"{error or 'no memory is left'}; {MACHINE_REMEDIES[errno.ENOMEM]}"
    if isinstance(error, OSError):
        return explain(error)
    return explain_files(error) or _lost_process(error)


def explain_files(error: Exception) -> str | None:
    """Say what to do where a library says that a process has no more files, or None where it does not say that."""
    if _TOO_MANY_FILES.search(str(error)) is None:
        return None
    return f"{os.strerror(errno.EMFILE)}; {MACHINE_REMEDIES[errno.EMFILE]}"


def _lost_process(error: RuntimeError) -> str | None:
    """Say in one line that a loader worker was killed, or that another process of the run has gone; None of others."""
    if _GONE.search(str(error)):
        return "another process of this run has ended, and this one was waiting for it: see what that one said"
    found = re.match(r"DataLoader worker \(pid\(?s?\)?:? ?([\d, ]+)\)(?:.*killed by signal: ([\w ]+))?", str(error))
    if found is None:
        return None
    by = f"was killed by the signal {found[2].strip()}" if found[2] else "ended unexpectedly"
    advice = (
        "shared memory is full: enlarge /dev/shm (docker run --shm-size 8g), or use fewer --data.workers"
        if found[2] and "bus" in found[2].lower()
        else "the machine may have run out of memory (`dmesg` says so): use fewer --data.workers, or smaller batches"
    )
    return f"loader worker {found[1].strip()} {by}; {advice}"


def plain_text(text: str) -> str:
    """Write text from elsewhere in one line without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _refuse(error: UserError) -> None:
    if not isinstance(error, PassingError | OSError):
        note_refusal(str(error))
    _end(str(error))


def note_refusal(message: str) -> None:
    """Tell who started the program that starting it again is of no use, where that is asked for by ``REFUSAL``.

    Exit codes do not reach through torchrun and accelerate.
    """
    if path := os.environ.get(REFUSAL):
        with contextlib.suppress(OSError):
            Path(path).write_text(" ".join(message.split()))


def _end(message: str, *, code: int = 1) -> None:
    if code == 1 and os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_ZERO_SPEAKS_FIRST_S)
    sys.stderr.write(f"{'error: ' if code == 1 else ''}{plain_text(message)}\n")
    sys.stderr.flush()
    sys.exit(code)
