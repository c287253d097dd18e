"""Augmentation in two steps: small random tensors, drawn on the CPU, and what they do to a batch on any device."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation(Protocol):
    """A random change of each image of a batch."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Random numbers [n, ...] for n images, on the CPU."""

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W], changed as their draws [B, ...] say; each image by its own draw alone."""


class CropAndFlip:
    """The usual augmentation of CIFAR: a random crop of the image in a black frame, then a flip of every other one.

    The frame is an eighth of the image wide: 4 pixels at 32. Images are square.

    Args:
        image_size: H and W in pixels.
    """

    def __init__(self, image_size: int) -> None:
        self.frame = image_size // 8

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """int64 [n, 3]: row and column where the crop begins, 1 where it is flipped."""
        corners = torch.randint(2 * self.frame + 1, (n, 2), generator=generator)
        return torch.cat([corners, torch.randint(2, (n, 1), generator=generator)], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        size = images.shape[-1]
        row, column, flip = draws.unbind(1)
        # A view of all crops, [B, C, rows, columns, H, W]; indexing copies the chosen ones.
        crops = F.pad(images, (self.frame,) * 4).unfold(2, size, 1).unfold(3, size, 1)
        chosen = crops[torch.arange(len(images), device=images.device), :, row, column]
        return torch.where(flip.bool()[:, None, None, None], chosen.flip(3), chosen)


class RandAugment:
    """Crops and flips, then two random changes of torchvision's RandAugment (Cubuk et al. 2020, arXiv 1909.13719).

    Args:
        image_size: H and W in pixels.

    Raises:
        ImportError: torchvision is missing.
    """

    def __init__(self, image_size: int) -> None:
        try:
            from torchvision.transforms import v2
        except ImportError as error:
            raise ImportError("augment='randaugment' is torchvision's: pip install torchvision") from error
        self._first, self._change = CropAndFlip(image_size), v2.RandAugment()

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """int64 [n, 4]: those of :class:`CropAndFlip`, and a seed."""
        return torch.cat([self._first.draw(n, generator), torch.randint(1 << 31, (n, 1), generator=generator)], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(self._first.apply(images, draws[:, :3]), draws[:, 3].tolist(), strict=True):
                torch.manual_seed(seed)
                changed.append(self._change(image))
        return torch.stack(changed)
