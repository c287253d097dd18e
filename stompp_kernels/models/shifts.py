"""Shifts that learn, before signs and around a PReLU, after Liu et al., "ReActNet" (ECCV 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Shift(nn.Module):
    """Adds a number that is learned for each channel; before a binarized layer it is ReActNet's RSign.

    ``sk.prepare`` gives that layer an activation of its own, which then clips and binarizes x + bias.

    Args:
        channels: C, of images [B, C, H, W].

    Example:
        >>> sk.models.Shift(3)(torch.zeros(1, 3, 2, 2)).shape
        torch.Size([1, 3, 2, 2])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` with each channel shifted."""
        return x + self.bias


class RPReLU(nn.Sequential):
    """A PReLU with a slope for each channel between two shifts: ReActNet's activation.

    Args:
        channels: C, of images [B, C, H, W].

    Example:
        >>> sk.models.RPReLU(3)(torch.full((1, 3, 1, 1), -4.0)).flatten()
        tensor([-1., -1., -1.], grad_fn=<ViewBackward0>)
    """

    def __init__(self, channels: int) -> None:
        super().__init__(Shift(channels), nn.PReLU(channels), Shift(channels))
