"""What a run shows while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from stompp_kernels.progression import Progress

if TYPE_CHECKING:
    from rich.console import Console

_ROOM_FOR_A_BAR = 100  # columns; the figures take up to 80
_COLUMNS = 80  # of a line in a file; and of a terminal without a bar, at least


class ProgressBar:
    """One line of steps, loss, accuracies, units committed, p and time left; without a terminal, a line an evaluation.

    Attributes:
        error: why the console could not be written, for the run to end in good order; nothing is shown from then on.
    """

    def __init__(self, console: Console, total_steps: int, step: int = 0) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console, self._test = console, ""
        self.error: OSError | None = None
        columns = [TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[status]}")]
        if console.width >= _ROOM_FOR_A_BAR:
            columns.insert(1, BarColumn(bar_width=16))  # type: ignore[arg-type]
        self._bar = Bar(*columns, TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task("train", total=total_steps, completed=step, status="")
        self._total, self._first, self._status, self._p = total_steps, step, "", ""
        self._since = time.monotonic()

    def __enter__(self) -> ProgressBar:
        if self._console.is_terminal:
            with self._noting_errors():
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:  # elsewhere rich would end what it never began with an empty line
            with self._noting_errors():
                self._bar.stop()

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def introduce(self, text: str) -> None:
        """Prints the first line. Where it cannot be written the next one cannot either, and that one ends the run."""
        with suppress(OSError):
            self._console.print(text, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        if self.error is None:
            with self._noting_errors():
                self._console.print(text, highlight=False, soft_wrap=True)

    def show(self, step: int, loss: float, accuracy: float, progress: Progress) -> None:
        """Shows values of the last steps; accuracy in percent."""
        self._p = f" p {progress.p:.0%} ({progress.frozen:.0%})" if progress.active else ""
        self._status = f"loss {loss:.3f} batch {accuracy:.0f}% {progress.frontier}/{progress.units} binary"
        self._update(step)

    def show_test(self, step: int, accuracy: float) -> None:
        """Shows an evaluation's accuracy in percent."""
        self._test = f" test {accuracy:.1f}%"
        self._update(step)
        if not self._console.is_terminal:
            start, end = f"{step}/{self._total} ", f" ETA {self._left(step)}"
            self.say(f"{start}{self._figures(len(start + end))}{end}")

    def _update(self, step: int) -> None:
        self._bar.update(
            self._task, completed=step, status=self._figures(len(f"{self._total}/{self._total} 00:00:00 "))
        )

    def _figures(self, others: int) -> str:
        """All but steps and time, which take ``others`` columns; without p where the line would be too long."""
        whole = f"{self._status}{self._p}{self._test}"
        return whole if len(whole) + others <= _COLUMNS else f"{self._status}{self._test}"

    def _left(self, step: int) -> str:
        """The time that the rest takes at the pace of this process so far."""
        pace = (time.monotonic() - self._since) / max(1, step - self._first)
        return str(timedelta(seconds=round(pace * (self._total - step))))
