"""Checkpoints: files that are whole or not there, proved by a checksum, and read without executing anything.

A checkpoint is a header and what torch.save wrote:

    8 bytes    magic, b"STOMPPCK"
    4 bytes    version, little-endian
    8 bytes    bytes of the payload, little-endian
    32 bytes   SHA-256 of the 20 bytes above and of the SHA-256 of the payload
    the rest   payload: torch.save of nested dicts, lists, numbers, strings and dense tensors

The checksum covers every byte of the file, so damage anywhere is found before the payload is parsed. It is no defence:
whoever edits a file can mend its checksum. What a payload may hold is therefore checked besides.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stompp_kernels.files import replacing

LAST, BEST = "checkpoint_last.pt", "checkpoint_best.pt"
MAGIC, VERSION = b"STOMPPCK", 2
_FIELDS = struct.Struct("<8sIQ")  # magic, version, bytes of the payload
_HEADER_BYTES = _FIELDS.size + hashlib.sha256().digest_size
_CHUNK = 1 << 20
_WITHOUT_CHECKSUM = b"PK\x03\x04"  # how torch.save begins: version 1 was its file alone
_DEPTH = 32  # of nested containers; a run's state has 6


class _Hashing:
    """A file that torch.save can write to; what passes through goes into a SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._digest.digest()


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values, in the place of an older checkpoint.

    Args:
        path: of the file; a reader sees the older one or the new one, never a part.
        content: nested dicts, lists, numbers, strings and dense tensors, no more than 32 levels deep.

    Raises:
        OSError: the file cannot be written; the older checkpoint stays.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from stompp_kernels.training.checkpoint import load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(Path(folder) / "a.pt", {"step": 3, "weight": torch.zeros(2)})
        ...     load_checkpoint(Path(folder) / "a.pt")["step"]
        3
    """
    with replacing(path) as file:
        file.write(bytes(_HEADER_BYTES))
        payload = _Hashing(file)
        torch.save(content, payload)
        fields = _FIELDS.pack(MAGIC, VERSION, file.tell() - _HEADER_BYTES)
        file.seek(0)
        file.write(fields + _checksum(fields, payload.digest()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote, to the CPU.

    Files that older versions wrote without a checksum are read with a warning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no checkpoint, of another version, or holds what no checkpoint does.

    Example:
        >>> from pathlib import Path
        >>> from stompp_kernels.training.checkpoint import load_checkpoint
        >>> load_checkpoint(Path("missing.pt"))
        Traceback (most recent call last):
        FileNotFoundError: no checkpoint at 'missing.pt'
    """
    name = os.fspath(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {name!r}")
    with open(path, "rb") as file:
        if file.read(len(_WITHOUT_CHECKSUM)) == _WITHOUT_CHECKSUM:
            content = _load_payload(file, 0, name)
            version = content.pop("version", None)
            if version != 1:
                raise ValueError(f"{name!r} has version {version!r:.40}, this package reads 1 and {VERSION}")
            warnings.warn(
                f"{name!r} carries no checksum, for an older version of this package wrote it: damage would go "
                "unnoticed; the next checkpoint of the run has one",
                stacklevel=2,
            )
        else:
            _check_bytes(file, name)
            content = _load_payload(file, _HEADER_BYTES, name)
    _check_plain(content, name, "", 0)
    return content


def _checksum(fields: bytes, payload_digest: bytes) -> bytes:
    """Returns SHA-256 over the header's fields and the digest of the payload: a file is written in one pass."""
    return hashlib.sha256(fields + payload_digest).digest()


def _check_bytes(file: BinaryIO, name: str) -> None:
    """Compares the header with the rest of the file."""
    file.seek(0)
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(MAGIC):
        raise ValueError(f"{name!r} is damaged or no checkpoint: it does not begin with a checkpoint's header")
    _, version, payload_bytes = _FIELDS.unpack_from(header)
    found = os.fstat(file.fileno()).st_size - _HEADER_BYTES
    if found != payload_bytes and version == VERSION:
        raise ValueError(
            f"{name!r} is damaged or no checkpoint: its header announces {payload_bytes} bytes, {found} follow"
        )
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    if not hmac.compare_digest(_checksum(header[: _FIELDS.size], digest.digest()), header[_FIELDS.size :]):
        raise ValueError(f"{name!r} is damaged or no checkpoint: its bytes do not match its checksum")
    if version != VERSION:
        raise ValueError(f"{name!r} has version {version}, this package reads 1 and {VERSION}")


def _load_payload(file: BinaryIO, start: int, name: str) -> dict[str, Any]:
    """Loads the dict that torch.save wrote from ``start`` on; tensors are read, nothing is run."""
    try:
        file.seek(start)
        _check_archive(file)
        file.seek(start)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or forged archive raises nearly anything
        raise ValueError(f"{name!r} is damaged or no checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name!r} is no checkpoint: it must hold a dict, got {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    """Returns what torch says first; advice on unsafe loading follows."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_archive(file: BinaryIO) -> None:
    """Checks that the entries of torch.save's zip file are no larger than the file: none is compressed."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"entry {packed[0]!r} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries are larger than the file")


def _check_plain(value: Any, name: str, key: str, depth: int) -> None:
    """Checks that a value is made of dicts, lists, numbers, strings and dense tensors with memory of their own size."""
    if depth > _DEPTH:
        raise ValueError(f"{name!r} is no checkpoint: {key.split('.')[0]!r} is nested deeper than {_DEPTH} levels")
    if isinstance(value, Tensor):
        problem = _tensor_problem(value)
        if problem:
            raise ValueError(f"{name!r} is no checkpoint: {key!r} is {problem}")
    elif isinstance(value, dict):
        for inner, item in value.items():
            if not isinstance(inner, (str, int)):
                raise ValueError(f"{name!r} is no checkpoint: {key!r} has a key of type {type(inner).__name__}")
            _check_plain(item, name, f"{key}.{inner}" if key else str(inner), depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, name, f"{key}.{index}", depth + 1)
    elif not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{name!r} is no checkpoint: {key!r} is of type {type(value).__name__}")


def _tensor_problem(tensor: Tensor) -> str:
    """Says why a tensor is none that a run saves; "" if it is one."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"a {'quantized' if tensor.is_quantized else 'sparse'} tensor, where a dense one is expected"
    if tensor.device.type != "cpu":
        return f"a tensor on {tensor.device}, which holds no values"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a tensor of shape {list(tensor.shape)} with {tensor.untyped_storage().nbytes()} bytes of memory"
    return ""
