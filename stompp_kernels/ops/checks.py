"""Argument checks that the ops share: an error names the argument, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SHORT_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*SHORT_FLOATS, torch.float64)
SURROGATES = ("none", "identity", "clip", "approx_sign")


def check_tensor(name: str, value: Any, dtypes: Sequence[torch.dtype]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {value.dtype}")


def check_shape(name: str, value: Tensor, expected: Sequence[int]) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(value.shape)}")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def pair(name: str, value: int | Sequence[int], at_least: int) -> tuple[int, int]:
    """An int or two as two, as torch's convolutions take them."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or not all(isinstance(v, int) for v in both):
        raise ValueError(f"{name} must be an int or two ints, got {value!r}")
    if min(both) < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value!r}")
    return both
