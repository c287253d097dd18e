"""Files that are there whole or not at all, and errors that say which file."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_TOKEN_BYTES = 8  # in the name of an unfinished file


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Gives a file for ``path``'s new content; at the end of the block it takes the place of the old one.

    If the block raises, or the process is killed in it, ``path`` stays as it was.

    Raises:
        OSError: the file cannot be written; the error names ``path``.
        ValueError: ``path`` is a folder, a device or the like, whose place no file can take.
    """
    target = Path(path)
    check_file_or_nothing(target)
    if not target.parent.exists():
        missing = f"its folder {os.fspath(target.parent)!r} is missing, make it first"
        raise FileNotFoundError(errno.ENOENT, missing, os.fspath(target))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN_BYTES)}")
    try:
        with naming(target, temporary):
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_file_or_nothing(path: Path) -> None:
    """Raises ValueError if ``path`` is there and no file: a device such as /dev/full would be lost."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        kind = "a folder" if path.is_dir() else "a device, a pipe or a socket"
        raise ValueError(f"{os.fspath(path)!r} must be a file, or not be there, but is {kind}")


def check_can_be_written(path: str | os.PathLike[str]) -> None:
    """Checks, before the work whose result it gets, that a file can be made or replaced at ``path``.

    Raises:
        OSError: its folder is no folder, or cannot be written.
        ValueError: as by :func:`replacing`.
    """
    target = Path(path)
    with naming(target):
        check_file_or_nothing(target)
        folder = target.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(folder))
        try:
            with tempfile.TemporaryFile(dir=folder):  # what the mode of a folder promises, its file system may refuse
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Gives an OSError of the block that names no file, or the ``temporary`` one, the name of ``path``."""
    try:
        yield
    except OSError as error:
        of_no_file = error.filename is None or (temporary is not None and error.filename == os.fspath(temporary))
        if error.errno is None or not of_no_file:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read_text(path: Path, limit: int = 1 << 24) -> str:
    """Reads the text of a small file in UTF-8.

    Raises:
        ValueError: it has more than ``limit`` bytes, or is not in UTF-8; names the file.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{os.fspath(path)!r} must have at most {limit} bytes, it has more")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)!r} is not in UTF-8: {error}") from error


def read_json(path: Path) -> Any:
    """Reads what a JSON file holds.

    Raises:
        ValueError: it is no JSON, or as by :func:`read_text`; names the file.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is no valid JSON: {error}") from error


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed in :func:`replacing` left in a folder."""
    unfinished = re.compile(rf"\..+\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
    for path in folder.iterdir():
        if unfinished.fullmatch(path.name):
            path.unlink()


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes indented JSON, in the place of what was there; its folder is made where there is none."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2) + "\n"
    with replacing(path) as file:
        file.write(text.encode())
