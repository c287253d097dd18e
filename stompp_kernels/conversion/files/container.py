"""The safetensors file around a packed network: metadata, checksum, and what is refused before anything is read.

A file says how large its tensors are. Its size must be the one that its header gives, and no large part of it may be
holes, which take no space on the disk and gigabytes in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

FORMAT, VERSION = "stompp_kernels.packed", 3
READ_VERSIONS = (1, 2, 3)
# A packed ResNet-50's header has 70 kB; one of 64 MiB may take a second and a gigabyte to parse.
_MOST_HEADER_BYTES = 64 << 20
_SMALL_BYTES = 1 << 20  # of a file that may be all holes
# First bytes of other files that may be taken for a packed network. As the length of a header all are too much.
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    **{bytes((0x80, protocol)): "a pickle, as torch.save wrote in old versions" for protocol in range(2, 6)},
    b"\x1f\x8b": "compressed by gzip",
    b"\x89HDF": "an HDF5 file",
}
_DEEPEST = 64  # lists and objects in each other


def to_bytes(structure: Mapping[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """The content of a file.

    Raises:
        ValueError: a tensor is empty, of which a file holds none but those of shape [0].
    """
    _check_not_empty({name: list(t.shape) for name, t in tensors.items()})
    text = json.dumps(structure, sort_keys=True, allow_nan=False)
    digest_of = digest(text, tensors)
    return save(tensors, {"format": FORMAT, "version": str(VERSION), "structure": text, "sha256": digest_of})


def read(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Tensor], int]:
    """Structure, tensors and version of a file that is whole.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no packed network, is of another version, was cut short or was altered.
    """
    shown = repr(os.fspath(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {shown}")
    _check_bytes_are_there(path, shown)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            wrong = _what_is_wrong_with(metadata)
            tensors = {} if wrong else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{shown} is damaged or no safetensors file: {error}") from error
    if wrong:
        raise ValueError(f"{shown} {wrong}")
    text, version = metadata.get("structure", ""), int(metadata["version"])
    if metadata.get("sha256") != digest(text, tensors):
        raise ValueError(f"{shown} was altered: its checksum does not match its contents")
    try:
        _check_not_empty({name: list(t.shape) for name, t in tensors.items()})
        return parse(text, version), tensors, version
    except ValueError as error:
        raise ValueError(f"{shown} holds a network that this package cannot build: {error}") from error


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the structure's text, then of each tensor's name, dtype, shape and bytes, in order of names."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def parse(text: str, version: int) -> Any:
    """The structure of a text, without what JSON leaves open: keys given twice, and constants that are no JSON.

    Raises:
        ValueError: it is no such JSON, or its lists and objects lie too deep in each other.
    """
    try:
        # Versions 1 and 2 wrote infinity as Python does.
        constant = float if version < 3 else _no_constant
        structure = json.loads(text, object_pairs_hook=_without_twins, parse_constant=constant)
    except RecursionError as error:
        raise ValueError(f"the structure has more than {_DEEPEST} lists and objects in each other") from error
    level, depth = [structure], 0
    while level:
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"the structure has more than {_DEEPEST} lists and objects in each other")
    return structure


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the structure gives the key {twice[:80]!r} twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"the structure holds {name}, which is no JSON")


def _what_is_wrong_with(metadata: Mapping[str, str]) -> str:
    """The end of a sentence that begins with the file's name; empty for a packed network that can be read."""
    if metadata.get("format") != FORMAT:
        return f"is no packed network: format must be {FORMAT!r}"
    if metadata.get("version") not in [str(version) for version in READ_VERSIONS]:
        listed = ", ".join(map(str, READ_VERSIONS))
        return f"has version {metadata.get('version')!r}, this package reads {listed}"
    return ""


def _check_not_empty(shapes: Mapping[str, list[int]]) -> None:
    for name, shape in shapes.items():
        if 0 in shape and shape != [0]:
            raise ValueError(f"tensor {name[:80]!r} of shape {shape} is empty, and no tensor of a network but [0] is")


def _check_bytes_are_there(path: str | os.PathLike[str], shown: str) -> None:
    """Raises ValueError where reading a file would take much more memory than the file takes space."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{shown} is damaged or no safetensors file: it is no regular file")
        size = status.st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > _MOST_HEADER_BYTES and (other := next((k for k in _OTHER_FILES if start.startswith(k)), None)):
            raise ValueError(
                f"{shown} is no safetensors file but {_OTHER_FILES[other]}; sk.save_packed writes packed networks"
            )
        if length > _MOST_HEADER_BYTES:
            raise ValueError(
                f"{shown} is damaged or no safetensors file: its header has {length:,} bytes, at most "
                f"{_MOST_HEADER_BYTES:,} are read"
            )
        there = _bytes_in(file.fileno(), size)
    if size > _SMALL_BYTES and there < size / 2:
        raise ValueError(
            f"{shown} is a sparse file: {there:,} of its {size:,} bytes are there, the others are holes; a packed "
            "network has few, so copy it without making holes (cp --sparse=never)"
        )


def _bytes_in(descriptor: int, size: int) -> int:
    """Bytes of a file that are no holes; all of them on systems that cannot tell.

    Blocks are not counted instead, as file systems that compress, or allocate late, report few.
    """
    if not hasattr(os, "SEEK_DATA"):
        return size
    there = position = 0
    while position < size:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            # ENXIO: nothing but a hole is left. Others: the file system cannot tell.
            return there if error.errno == errno.ENXIO else size
        there += position - data
    return there
