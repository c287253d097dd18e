"""A limit on the time that code of others computes in Python, where no size that it loops over is known beforehand."""

from __future__ import annotations

import ctypes
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
            return compute()
        finally:
            watch.stop()
    except _TooLongError as error:
        watch.stop()  # the error may have come while the first call was under way
        raise ValueError(f"it takes more than {seconds:.1f} s") from error


class _Watch:
    """A thread that raises _TooLongError in the thread that made it, until it is stopped.

    It raises the error each second: one that reaches a callback of the garbage collector, a finalizer or an ``except:``
    is dropped there.
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
                if not self._stopped.is_set() and self._now() > self._end:
                    self._raise(_TooLongError)
                    pause = 1.0

    def _raise(self, error: type[BaseException] | None) -> None:
        identity = ctypes.c_ulong(self._thread)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, None if error is None else ctypes.py_object(error))
