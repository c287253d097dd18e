"""Checkpoints that are whole or not there, and read without executing anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from stompp_kernels.files import replacing

LAST, BEST = "checkpoint_last.pt", "checkpoint_best.pt"
VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values, in the place of an older checkpoint."""
    with replacing(path) as file:
        torch.save({"version": VERSION, **content}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote, to the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {os.fspath(path)!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{os.fspath(path)!r} is damaged or no checkpoint: {error}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise ValueError(f"{os.fspath(path)!r} has version {version!r}, this package reads {VERSION}")
    return content
