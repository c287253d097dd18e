"""The device that a command runs on."""

from __future__ import annotations

import torch

from stompp_kernels.ops.checks import check_choice


def choose_device(name: str) -> torch.device:
    """Returns the device of "cpu", "cuda" or "auto", which is "cuda" where torch sees a GPU.

    Raises:
        ValueError: the name is none of these, or torch sees no GPU.
    """
    check_choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no NVIDIA GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
