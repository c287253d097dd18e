"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_TOKEN_BYTES = 8  # in the name of an unfinished file


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write ``path``'s new content to; at the end of the block it takes the place of the old one.

    If the block raises, or the process is killed in it, ``path`` stays as it was.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN_BYTES)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed in :func:`replacing` left in a folder."""
    unfinished = re.compile(rf"\..+\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
    for path in folder.iterdir():
        if unfinished.fullmatch(path.name):
            path.unlink()


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Indented JSON, in the place of what was there; its folder is made where there is none."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2) + "\n"
    with replacing(path) as file:
        file.write(text.encode())
