"""A plain training loop around a progression."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stompp_kernels.progression import StoMPP


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum; the learning rate rises linearly over the first epochs and falls by a cosine to 0."""

    epochs: int = 60
    batch_size: int = 64
    lr: float = 0.2
    momentum: float = 0.9
    lr_warmup_epochs: int = 3

    def steps(self, samples: int) -> int:
        """Optimizer steps of the run; an epoch drops its last, smaller batch."""
        return self.epochs * (samples // self.batch_size)

    def lr_factor(self, step: int, total: int) -> float:
        warmup = self.lr_warmup_epochs * total / self.epochs
        rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
        return rise * (1 + math.cos(math.pi * step / total)) / 2


def train(
    model: nn.Module,
    progression: StoMPP,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    transform: Callable[[Tensor, torch.Generator], Tensor],
    generator: torch.Generator,
    on_epoch: Callable[[int, float], None],
) -> None:
    """Trains in place, one ``progression.step()`` after each optimizer step.

    Args:
        images, labels: [N, C, H, W] and [N], whole in memory.
        transform: of each batch: augmentation and normalization.
        generator: of the order of samples and the augmentation.
        on_epoch: called after each epoch with its number from 1 and its mean loss.
    """
    total = recipe.steps(len(images))
    if total < 1:
        raise ValueError(f"batch_size must be at most the {len(images)} training images, got {recipe.batch_size}")
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.lr_factor(step, total))
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        losses = []
        order = torch.randperm(len(images), generator=generator)
        for batch in order.split(recipe.batch_size)[: total // recipe.epochs]:
            x = transform(images[batch], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progression.step()
            losses.append(loss.detach())
        on_epoch(epoch, float(torch.stack(losses).mean()))


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Logits [N, classes] in eval mode."""
    model.eval()
    return torch.cat([model(x.contiguous(memory_format=torch.channels_last)) for x in images.split(batch_size)])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    return 100 * float((logits.argmax(1) == labels).float().mean())
