"""What every data set does, and how its random numbers are seeded."""

from __future__ import annotations

import copy
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

Inputs: TypeAlias = Tensor | dict[str, Tensor]


class Data(ABC):
    """Training and test samples: images, float32 [B, C, H, W], or tokens, a dict of int64 [B, max_length].

    Attributes:
        name: as :func:`stompp_kernels.training.data.load` takes it.
        num_classes: labels are int64 in [0, num_classes).
        train_size, test_size: samples.
        device: where batches come out.

    Example:
        >>> from stompp_kernels.training import data
        >>> digits = data.load("digits")
        >>> digits.num_classes, digits.steps_per_epoch(batch_size=100)
        (10, 13)
    """

    def __init__(self, name: str, num_classes: int, train_size: int, test_size: int) -> None:
        self.name, self.num_classes = name, num_classes
        self.train_size, self.test_size = train_size, test_size
        self.device = torch.device("cpu")

    def to(self, device: str | torch.device) -> Data:
        """Returns the same data with batches on ``device``, and there whatever of it is held as tensors."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
            elif isinstance(value, dict):
                setattr(moved, name, {key: tensor.to(device) for key, tensor in value.items()})
        return moved

    def steps_per_epoch(self, batch_size: int) -> int:
        """Counts the whole batches in the training samples.

        Raises:
            ValueError: there is none.
        """
        check_int("batch_size", batch_size, 1, self.train_size)
        return self.train_size // batch_size

    def train_batches(
        self, epoch: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yields inputs and labels of an epoch, shuffled and augmented; the last, smaller batch is dropped.

        A pure function of its arguments: batch k has the same bits whatever ``start`` and ``world_size`` are, and the
        same samples and random crops and flips on every device. No global random state is read or changed.

        Args:
            epoch: from 0.
            batch_size: of all processes together.
            seed: of the order and the augmentation.
            start: the first batch to give; ``steps_per_epoch``, which gives none, is allowed.
            rank, world_size: this process and how many there are: each batch's rank-th part of equal size is given.

        Raises:
            ValueError: a value is out of range, or ``batch_size`` is no multiple of ``world_size``.
        """
        steps = self.steps_per_epoch(batch_size)
        check_int("epoch", epoch, 0)
        check_int("start", start, 0, steps)
        check_int("world_size", world_size, 1)
        check_int("rank", rank, 0, world_size - 1)
        if batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of world_size = {world_size}, got {batch_size}")
        order = torch.randperm(self.train_size, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        share = batch_size // world_size
        return self._train_batches(
            order[: steps * batch_size].view(steps, batch_size),
            (seed, epoch),
            range(start, steps),
            slice(rank * share, (rank + 1) * share),
        )

    @abstractmethod
    def _train_batches(
        self, order: Tensor, stream: tuple[int, int], numbers: range, part: slice
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Batches ``numbers`` of an epoch.

        Args:
            order: [steps, batch_size], samples of each whole batch.
            stream: what, with the number of a batch, seeds its augmentation.
            part: of a whole batch, the samples to give.
        """

    @abstractmethod
    def test_batches(self, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Yields inputs and labels of all test samples in order; the last batch may be smaller."""

    @abstractmethod
    def example_inputs(self) -> Inputs:
        """Returns the inputs of one sample, B = 1."""


def mixed_seed(*numbers: int) -> int:
    """Mixes a sequence of integers into one 64-bit seed.

    torch's CPU generator keeps the low 32 bits of its seed only: with ``seed << 32 | epoch`` all seeds would be one.
    And sums repeat: the epochs of seed + 1 would be those of seed, one later. A hash has every number in all its bits.
    """
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def limited(name: str, labels: Tensor, limit: int | None) -> Tensor:
    """Returns the indices, ascending, of the first ``limit`` samples when classes take turns.

    A class that has run out of samples is passed over.

    Args:
        name: of the argument that ``limit`` is, for the error.
        labels: int64 [N].
        limit: in [1, N]; None: all.
    """
    if limit is None:
        return torch.arange(len(labels))
    check_int(name, limit, 1, len(labels))
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    turn = torch.empty_like(labels)
    turn[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return turn.argsort(stable=True)[:limit].sort().values


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ValueError unless ``value`` is an int from ``low`` to ``high``."""
    if not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"an int of at least {low}" if high is None else f"an int from {low} to {high}"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_path(name: str, path: Path | None, layout: str) -> Path:
    """Returns the path of data set ``name`` if it is a folder.

    Raises:
        ValueError: no path is given.
        FileNotFoundError: it is no folder.
    """
    if path is None:
        raise ValueError(f"path must be given for data set {name!r}: {layout}")
    if not path.is_dir():
        raise FileNotFoundError(f"path must be a folder, got {path}: {layout}")
    return path


def check_file(path: Path, layout: str) -> None:
    """Checks that a file of a data set is one: what reads a pipe or a device may wait, or read, for ever.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no regular file.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path} is missing: {layout}")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; {layout}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} must be a file, got {_KINDS.get(stat.S_IFMT(mode), 'another thing')}; {layout}")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
