"""The activation that takes a ReLU's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stompp_kernels.nn.masked import Masked, Stage


class ProgressiveActivation(Masked):
    """clip(x, -1, 1) whose entries are gradually replaced by sign(x).

    The mask has the shape of one sample and is shared by the batch. Everything after the activation, a shortcut too,
    sees the committed values.

    Args:
        mask_shape: shape of the input without its batch dimension; None: taken by ``sk.prepare`` or ``sk.link``.

    Shape:
        [B, *] to [B, *], any floating-point dtype.
    """

    def __init__(self, mask_shape: Sequence[int] | None = None, device: Any = None) -> None:
        super().__init__(mask_shape, device)

    def forward(self, x: Tensor) -> Tensor:
        # In this order: compiled code then reads the stage for inputs of another shape only.
        if tuple(x.shape[1:]) != self.mask_shape and self.stage is Stage.PARTIAL:
            raise ValueError(f"x must have shape [B, *{self.mask_shape}] while partly frozen, got {list(x.shape)}")
        return self.apply_progressive(x, batch_shared=True)

    def extra_repr(self) -> str:
        return f"mask_shape={self.mask_shape}, stage={self.stage.name}, surrogate={self.surrogate!r}"
