"""The pickles of CIFAR's python version, read without running them.

A pickle is a program: it names functions and has them called with arguments of its choice. Here no name is ever looked
up. The few that numpy writes for an array become inert objects whose calls are recorded; every other name is an error.
What was recorded is then checked and read as the data that it is meant to be.
"""

from __future__ import annotations

import io
import pickle
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

# numpy's own names for what pickles an array, before and since numpy 2, and how Python 3 writes bytes in protocol 2.
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}


# Protocol 0 writes a byte as four characters, "\\x80"; a label and a file's name take less than this.
_LONGEST_BYTE, _REST_BYTES = 4, 1000


class _Call:
    """A call that the pickle asked for, not made, and the state that it would have given to the result."""

    def __init__(self, function: str, arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments, self.state = function, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Name:
    """What a name in the pickle becomes. One for each use: a pickle may write to it without any effect on others."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> _Call:
        return _Call(self.name, arguments)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise ValueError(f"it refers to {module}.{name}, which is not run")
        return _Name(_NAMES[module, name])


def read_pickled_batch(path: Path, label_key: str, pixels: int, most: int) -> tuple[np.ndarray, list[int]]:
    """Reads the images and labels of a batch of CIFAR's python version.

    Args:
        label_key: of the labels in the pickled dict: "labels" or "fine_labels".
        pixels: bytes of an image.
        most: images that the file may have.

    Returns:
        uint8 [N, pixels], and N labels.

    Raises:
        ValueError: the file is not a pickle, or one of anything else.
    """
    size, limit = path.stat().st_size, most * pixels * _LONGEST_BYTE + _REST_BYTES * most
    if size > limit:
        raise ValueError(f"its size must be at most {limit} bytes, got {size}")
    try:
        # From memory: a length in the pickle cannot ask for more than is there.
        batch = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()  # latin1 keeps Python 2's bytes
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"not a pickle of arrays, lists and numbers: {error}") from error
    if not isinstance(batch, dict) or "data" not in batch or label_key not in batch:
        raise ValueError(f"it must hold a dict with 'data' and {label_key!r}")
    labels = batch[label_key]
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels) or not labels:
        raise ValueError(f"{label_key!r} must be a list of ints")
    return _image_rows(batch["data"], len(labels), pixels), labels


def _image_rows(node: Any, n: int, pixels: int) -> np.ndarray:
    """The uint8 array [n, pixels] that a recorded call of numpy's ``_reconstruct`` stands for."""
    if not isinstance(node, _Call) or node.function != "array":
        raise ValueError("'data' must be a numpy array")
    if not isinstance(node.state, tuple) or len(node.state) != 5:
        raise ValueError("'data' must be a numpy array, version 1 of its pickles")
    _, shape, dtype, fortran_order, raw = node.state
    if not isinstance(dtype, _Call) or dtype.function != "dtype" or dtype.arguments[:1] != ("u1",):
        raise ValueError("'data' must be an array of uint8")
    content = _as_bytes(raw)
    if shape != (n, pixels) or len(content) != n * pixels:
        raise ValueError(f"'data' must be {n} rows of {pixels} bytes, one for each label, got {reprlib.repr(shape)}")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if fortran_order else "C")
    return rows.copy(order="C")  # its own memory: that of bytes cannot be written to, which torch warns about


def _as_bytes(node: Any) -> bytes:
    """Bytes as the protocols write them: as such, as a Python 2 string, or as a recorded call of ``encode``."""
    if isinstance(node, _Call) and node.function == "encode" and node.arguments[1:] == ("latin1",):
        node = node.arguments[0]
    if isinstance(node, str):
        return node.encode("latin1")
    if not isinstance(node, bytes):
        raise ValueError("'data' must have its elements as bytes")
    return node
