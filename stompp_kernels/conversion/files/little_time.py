"""A limit on the time that code of others computes in Python, where no size that it loops over is known beforehand."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class _TooLongError(BaseException):
    """Raised in another thread; no Exception, so that few fallbacks catch it."""


def in_little_time(seconds: float, compute: Callable[[], Result]) -> Result:
    """Return ``compute()``, unless it takes too long.

    Args:
        seconds: of this thread on a processor, where the system tells it, as a machine may be busy otherwise.
        compute: code that runs Python; a single call of C is not ended.

    Raises:
        ValueError: it takes more.
    """
    watch = _Watch(seconds)
    try:
        try:
            return _limited(compute)
        finally:
            watch.stop()
    except _TooLongError as error:
        watch.stop()  # the error may have come while the first call was under way
        raise ValueError(f"it takes more than {seconds:.1f} s") from error


def _limited(compute: Callable[[], Result]) -> Result:
    """Return ``compute()``; what runs below this function, and nothing else, is ended."""
    return compute()


class _Watch:
    """A thread that raises _TooLongError in the thread that made it, until it is stopped.

    One that reaches a callback of the garbage collector, a finalizer or an ``except:`` is dropped there, so it is
    raised again and again: a loop that allocates may spend most of its time in such callbacks.
    """

    def __init__(self, seconds: float) -> None:
        self._thread = threading.get_ident()
        self._end = self._now() + seconds
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        with self._lock:
            self._stopped.set()
            self._raise(None)  # one that is on its way must not arrive later

    def _now(self) -> float:
        if hasattr(time, "pthread_getcpuclockid"):
            return time.clock_gettime(time.pthread_getcpuclockid(self._thread))
        return time.monotonic()

    def _watch(self) -> None:
        pause = 0.1
        while not self._stopped.wait(pause):
            with self._lock:
                if not self._stopped.is_set() and self._now() > self._end and self._computing():
                    self._raise(_TooLongError)
                    pause = 0.01

    def _computing(self) -> bool:
        """Return whether the thread is below _limited; elsewhere an error is on its way out, and needs no other."""
        frame = sys._current_frames().get(self._thread)
        while frame is not None and frame.f_code is not _limited.__code__:
            frame = frame.f_back
        return frame is not None

    def _raise(self, error: type[BaseException] | None) -> None:
        identity = ctypes.c_ulong(self._thread)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, None if error is None else ctypes.py_object(error))
