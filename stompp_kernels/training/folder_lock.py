"""A folder that one process at a time writes to."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = ".lock"
RETRY_SECONDS = 0.5


class FolderInUseError(ValueError):
    """Another process has the lock of a folder."""


# flock belongs to the open file, which a forked child shares: a worker that outlives a killed run would keep its lock.
_held: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from this block for the same folder, which is made if need be.

    The lock is one of flock(2) on a file in the folder: it ends with the process, however that ends. It holds between
    machines that share the folder where the file system carries flock over, as NFS does from version 4 on, and Linux
    for version 3 with its lock daemon.

    Raises:
        FolderInUseError: another process has the lock.
        ValueError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {os.fspath(folder)!r}")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _acquire(folder)
        _held.add(descriptor)
        try:
            yield
        finally:
            (folder / NAME).unlink(missing_ok=True)  # before the lock ends: see _acquire
            _held.discard(descriptor)
            os.close(descriptor)
    finally:
        if made:
            with suppress(OSError):  # not empty: the block has written something
                folder.rmdir()


def wait_until_free(folder: Path, seconds: float) -> None:
    """Returns when no other process has the lock of a folder, or after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with locked(folder):
                return
        except FolderInUseError:
            time.sleep(RETRY_SECONDS)


def _acquire(folder: Path) -> int:
    """Returns a descriptor that holds the lock of a folder."""
    path = folder / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between the two calls: then the lock is of a file that
            # nobody else will open.
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise FolderInUseError(
                f"folder {os.fspath(folder)!r} is in use by another run, process {holder}: wait for its end, or choose "
                "another folder"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
