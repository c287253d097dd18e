"""What a run shows while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class ProgressBar:
    """One line of steps, loss, accuracies, frontier, p and time left; without a terminal, a line an evaluation.

    Attributes:
        error: why the console could not be written, for the run to end in good order; nothing is shown from then on.
    """

    def __init__(self, console: Console, total_steps: int, step: int = 0) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console, self._test = console, ""
        self.error: OSError | None = None
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("train", total=total_steps, completed=step, status="")
        self._total, self._status = total_steps, ""

    def __enter__(self) -> ProgressBar:
        if self._console.is_terminal:
            with self._noting_errors():
                self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._noting_errors():
            self._progress.stop()

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def show(self, step: int, loss: float, accuracy: float, frontier: int, units: int, p: float) -> None:
        """Shows values of the last steps; accuracy in percent."""
        self._status = f"loss {loss:.3f}  batch {accuracy:4.1f} %  frontier {frontier}/{units}  p {p:.2f}"
        self._progress.update(self._task, completed=step, status=f"{self._status}{self._test}")

    def show_test(self, step: int, accuracy: float) -> None:
        """Shows an evaluation's accuracy in percent."""
        self._test = f"  test {accuracy:4.1f} %"
        self._progress.update(self._task, completed=step, status=f"{self._status}{self._test}")
        if not self._console.is_terminal and self.error is None:
            with self._noting_errors():
                self._console.print(f"step {step}/{self._total}  {self._status}{self._test}", highlight=False)
