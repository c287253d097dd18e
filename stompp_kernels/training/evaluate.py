"""Accuracy on the test data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stompp_kernels.training.data import Data, Inputs
from stompp_kernels.training.processes import Processes


def logits_of(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """Returns what a model says of a batch, float32 [B, num_classes]; a dict holds keyword arguments."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return getattr(output, "logits", output).float()


@torch.no_grad()
def evaluate(
    model: nn.Module, forward: Callable[..., Any], data: Data, batch_size: int, processes: Processes
) -> tuple[float, float]:
    """Measures top-1 accuracy in percent and mean cross-entropy on the test data, each process on its batches.

    Args:
        model: set to eval mode, and back to what it was.
        forward: the model, or what torch.compile made of it.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=processes.device)
    for index, (inputs, labels) in enumerate(data.test_batches(batch_size)):
        if index % processes.world_size == processes.rank:
            logits = logits_of(forward, inputs)
            sums[0] += (logits.argmax(1) == labels).sum()
            sums[1] += F.cross_entropy(logits, labels, reduction="sum")
            sums[2] += len(labels)
    model.train(training)
    correct, loss, count = processes.sum(sums).tolist()
    return 100 * correct / count, loss / count


@torch.no_grad()
def predict(model: nn.Module, data: Data, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Returns logits [N, num_classes] in eval mode, and labels [N], of all test samples."""
    model.eval()
    logits, labels = zip(*((logits_of(model, x), y) for x, y in data.test_batches(batch_size)), strict=True)
    return torch.cat(logits), torch.cat(labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Returns top-1 accuracy in percent."""
    return 100 * float((logits.argmax(1) == labels).float().mean())
