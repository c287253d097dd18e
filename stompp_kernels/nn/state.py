"""State dicts whose tensors were cast as a whole, ``{key: value.half() for ...}`` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def refused_casts(state_dict: Mapping[str, Any], prefix: str, dtypes: Mapping[str, Sequence[torch.dtype]]) -> list[str]:
    """Says what is wrong with the types of a module's saved tensors; empty if nothing is.

    Bits, integers and the constants that signs are decided by do not survive a cast: copied back they would be other
    ones, without a word.

    Args:
        prefix: of the module's keys.
        dtypes: the types that the module's tensors may have in the state dict, by name.
    """
    problems = []
    for name, allowed in dtypes.items():
        saved = state_dict.get(prefix + name)
        if isinstance(saved, Tensor) and saved.dtype not in allowed:
            wanted = " or ".join(map(str, allowed))
            problems.append(
                f"{prefix + name!r} must be {wanted}, got {saved.dtype}: it does not survive a cast of the whole state "
                "dict; cast the module's parameters with .to(dtype) instead, or floating-point parameters only"
            )
    return problems
