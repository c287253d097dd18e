"""What the models share: the check of sizes, and the start of convolutions."""

from __future__ import annotations

from torch import nn


def check_sizes(**sizes: int) -> None:
    """Raises ValueError for the first size that is no integer of at least 1, naming it."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")


def kaiming_(model: nn.Module) -> None:
    """Draws the convolutions' weights with a variance of 2 / fan-in (He et al. 2015).

    ``sk.prepare`` gives binarized layers a scale of its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
