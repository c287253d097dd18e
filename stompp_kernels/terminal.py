"""The console of rich that training writes to; no other part needs rich, and it is imported for a console alone."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def terminal(quiet: bool = False) -> Console:
    """A console which raises BrokenPipeError where nobody reads: rich's own would end the process.

    Raises:
        ImportError: rich is missing (the `train` extra, or `demo`).
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError(
            'this command writes to the terminal with rich, which is missing: pip install "stompp_kernels[train]"'
        ) from error

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return Terminal(quiet=quiet)
