"""The console that commands write to."""

from __future__ import annotations

import errno
import os

from rich.console import Console


class Terminal(Console):
    """A Console of rich's which raises BrokenPipeError where nobody reads: rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
