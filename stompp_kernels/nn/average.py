"""An average of a model's weights, whose masks are the model's own."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import swa_utils

from stompp_kernels.nn.masked import copy_masks


class AveragedModel(swa_utils.AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` of a prepared model: weights are averaged, masks and stages copied.

    Args:
        model: the prepared model.
        decay: of an exponential moving average, in (0, 1); None: what ``options`` say, the plain average by default.
        options: of torch's class.

    Raises:
        ValueError: decay is out of range.

    Example:
        >>> model = nn.Sequential(sk.nn.BinaryLinear(8, 4))
        >>> average = sk.nn.AveragedModel(model, decay=0.999)
        >>> model[0].commit()
        >>> average.update_parameters(model)  # after each optimizer.step() and progression.step()
        >>> average.module[0].frozen()
        32
    """

    def __init__(self, model: nn.Module, decay: float | None = None, **options: Any) -> None:
        if decay is not None:
            if not 0 < decay < 1:
                raise ValueError(f"decay must be in (0, 1), got {decay}")
            options["multi_avg_fn"] = swa_utils.get_ema_multi_avg_fn(decay)
        super().__init__(model, **options)

    def update_parameters(self, model: nn.Module) -> None:
        """Averages the model's weights into this average, and takes over its masks."""
        super().update_parameters(model)
        copy_masks(model, self.module)
