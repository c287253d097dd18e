"""The gradient of one optimizer step, from one batch or from several that are too large to run at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def backward(
    forward: Callable[[Any], Any],
    loss: Callable[[Any, Any], Tensor],
    batches: Sequence[tuple[Any, Any]],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[Tensor | None, list[Any]]:
    """Adds to the gradients those of the mean loss over batches; returns that loss, detached, and the outputs.

    The loss is None where no gradient reaches a parameter any more.

    Args:
        forward: makes an output of a batch's inputs, under ``autocast()``.
        loss: of an output and a target.
        batches: inputs and target each; batches of other sizes than the rest count as much as these.
    """
    losses, outputs = [], []
    for inputs, target in batches:
        with autocast():
            output = forward(inputs)
        value = loss(output, target)
        if not value.requires_grad:
            return None, [output]
        (value if len(batches) == 1 else value / len(batches)).backward()
        losses.append(value.detach())
        outputs.append(output)
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0], outputs
