"""Triton kernels in a form that torch's compiler can trace."""

from __future__ import annotations

from typing import Any

import torch
import triton


def wrap_triton(kernel: Any) -> Any:
    """``torch.library.wrap_triton``, also for a kernel that Triton interprets, which torch before 2.13 refuses.

    Nothing traces such a kernel: it is launched as it is. torch finds the kernels of an op by this function's name.
    """
    return torch.library.wrap_triton(kernel) if isinstance(kernel, triton.JITFunction) else kernel
