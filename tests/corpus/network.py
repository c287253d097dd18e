"""What a network of the corpus is, and the list that the files of networks fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: in the table, and of the test.
        family: the library that it is of, or "by hand".
        make: returns the float network with random weights, and example inputs.
        options: arguments of ``sk.prepare`` beside the example inputs.
    """

    name: str
    family: str
    make: Callable[[], tuple[nn.Module, Any]]
    options: dict[str, Any] = field(default_factory=dict)


def images(size: int = 32, channels: int = 3, batch: int = 2) -> torch.Tensor:
    """Returns seeded images [batch, channels, size, size]."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def tokens(vocabulary: int = 60, length: int = 12, batch: int = 2) -> torch.Tensor:
    """Returns seeded ids [batch, length]."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
