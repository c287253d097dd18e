"""How a command ends: a status for the shell, and at most one line on stderr."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from stompp_kernels.signals import Stopped, Terminated, raising_signals

USER_ERROR = 2
_BY_SIGNAL = 128  # shells add the signal's number


def run(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status.

    An error that a user can mend (a wrong value, a missing library, a file that cannot be read or written) is one line
    and status 2. After a signal the status is 128 plus its number; so it is, without a line, for SIGPIPE, where
    nobody reads what the command prints.
    """
    try:
        with raising_signals():
            try:
                return command()
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # not left to the interpreter's end, which could not say what is wrong
    except Stopped as stopped:
        return _end(str(stopped), _BY_SIGNAL + stopped.number)
    except (KeyboardInterrupt, Terminated) as error:
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        return _end(f"stopped by {signal.Signals(number).name}", _BY_SIGNAL + number)
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _discard_output()
            return _BY_SIGNAL + signal.SIGPIPE
        return _end(_line(error), USER_ERROR)


def _end(line: str, status: int) -> int:
    _discard_output()
    with suppress(OSError):  # stderr cannot be written either: the status is all that is left to say it
        print(f"stompp: {line}", file=sys.stderr, flush=True)
    return status


def _line(error: Exception) -> str:
    """Makes one line of an error's message; a system's error begins with the path."""
    if isinstance(error, OSError) and error.strerror:
        where = "standard output" if error.filename is None and not _can_flush() else error.filename
        return error.strerror if where is None else f"{where}: {error.strerror}"
    return " ".join(part.strip() for part in str(error).splitlines()) or type(error).__name__


def _can_flush() -> bool:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        return False
    return True


def _nobody_reads() -> bool:
    """Returns whether standard output is a pipe whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, io.UnsupportedOperation):  # no such stream, or one of Python's own
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_output() -> None:
    """Turns standard output away from a file that cannot be written: the interpreter's end would try once more."""
    if not _can_flush():
        with suppress(io.UnsupportedOperation):
            number = sys.stdout.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
