"""The signals that ask a process to end, and what becomes of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal ended a run or a study in good order.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int, state: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {state}")
        self.number = number


class Terminated(BaseException):
    """SIGTERM or SIGHUP came where nothing waits for it; like KeyboardInterrupt, which SIGINT raises."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def noting_signals() -> Iterator[list[int]]:
    """Gives the numbers of the signals in :data:`ENDING` that arrive in the block.

    A second SIGINT raises KeyboardInterrupt.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    with _handled(note, ENDING):
        yield received


@contextmanager
def raising_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise :class:`Terminated` inside: temporary files are removed on the way out."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    with _handled(end, (signal.SIGTERM, signal.SIGHUP)):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Gives the signals a handler for the length of the block, but not an ignored SIGHUP: that is what nohup is for."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can have handlers
        yield
        return
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    taken = [number for number in numbers if not (ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
