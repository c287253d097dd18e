"""What the suite measures: cases, each with our side, what it is compared with, and what its result must be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Sides:
    """One case with its operands in memory.

    Attributes:
        ours: the side measured.
        others: what it is compared with, by name.
        expected: the value that our side must give, to the bit.
        draws: plain PyTorch draws random numbers, so that no two calls agree.
    """

    ours: Call
    others: dict[str, Call]
    expected: Callable[[], Tensor]
    draws: bool = False

    def check_ours(self) -> None:
        """Runs our side once.

        Raises:
            AssertionError: the result is not what is expected.
        """
        ours, expected = self.ours(), self.expected()
        right = ours.shape == expected.shape and torch.equal(ours.to(torch.float64), expected.to(torch.float64))
        assert right, "wrong result: not timed"

    def check(self) -> None:
        """Runs every side once.

        Raises:
            AssertionError: our result is not what is expected, or torch.compile's is not eager's.
        """
        self.check_ours()
        results = {name: call() for name, call in self.others.items()}
        if "compiled" in results and not self.draws:
            torch.testing.assert_close(results["compiled"], results["eager"])


@dataclass(frozen=True)
class Case:
    """One figure of the suite; nothing is allocated before :attr:`build` is called.

    Attributes:
        op: in ``stompp_kernels.ops``.
        group: of cases that are summed up together.
        name: within the group.
        others: names of the sides that ours is compared with.
        build: makes the operands.
        operations: multiplications and additions of one call; 0 where bytes are what counts.
        bytes: that one call must read and write at least.
        kind: of the operations: "binary", or "signed sum" of floats with binary weights.
    """

    op: str
    group: str
    name: str
    others: tuple[str, ...]
    build: Callable[[], Sides] = field(repr=False)
    operations: int = 0
    bytes: int = 0
    kind: str = "binary"

    @property
    def sides(self) -> tuple[str, ...]:
        return ("ours", *self.others)

    @property
    def key(self) -> str:
        return f"{self.group}: {self.name}"


PLAIN = ("eager", "compiled")


def plain(formula: Callable[..., Tensor], *operands: Tensor) -> dict[str, Call]:
    """What a PyTorch user writes, eager and under torch.compile."""
    fast = torch.compile(formula, dynamic=False)
    return {"eager": lambda: formula(*operands), "compiled": lambda: fast(*operands)}


def in_turn(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """A test for each side of each case; see the fixture ``turns``."""
    parameters = [
        pytest.param(case, side, id=f"{case.group}, {case.name}, {side}") for case in cases for side in case.sides
    ]
    return pytest.mark.parametrize(("case", "side"), parameters)


def signs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, shape, generator=generator).float() * 2 - 1


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
