"""Images that fit in memory, kept there as bytes; normalized and augmented batch by batch on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stompp_kernels.training.data.augment import Augmentation
from stompp_kernels.training.data.base import Data, check_int, limited, mixed_seed


class ImageData(Data):
    """Images normalized to zero mean and unit variance of each channel over the training images given.

    Args:
        train, test: images uint8 [N, C, H, W] and labels int64 [N].
        augmentation: of training batches; None: none.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        augmentation: Augmentation | None,
    ) -> None:
        self.train_images, self.train_labels = train
        self.test_images, self.test_labels = test
        super().__init__(name, num_classes, len(self.train_labels), len(self.test_labels))
        self.mean, self.std = channel_statistics(self.train_images)
        self.augmentation = augmentation

    def _train_batches(
        self, order: Tensor, stream: tuple[int, int], numbers: range, part: slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        indices = order[:, part].to(self.device)
        for k in numbers:
            images = self.train_images[indices[k]]
            if self.augmentation is not None:
                # Drawn on the CPU, for the device's generator has other numbers, and for the whole batch, since what a
                # generator gives depends on how much is drawn.
                generator = torch.Generator().manual_seed(mixed_seed(*stream, k))
                draws = self.augmentation.draw(order.shape[1], generator)[part]
                # An ordinary copy would wait for the device to finish the step before.
                images = self.augmentation.apply(images, draws.to(self.device, non_blocking=True))
            yield self._normalize(images), self.train_labels[indices[k]]

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_int("batch_size", batch_size, 1)
        batches = zip(self.test_images.split(batch_size), self.test_labels.split(batch_size), strict=True)
        return ((self._normalize(images), labels) for images, labels in batches)

    def example_inputs(self) -> Tensor:
        return self._normalize(self.train_images[:1])

    def _normalize(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


def first_images(name: str, images: Tensor, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """Returns as many images and labels as :func:`limited` keeps."""
    if limit is None:
        return images, labels
    chosen = limited(name, labels, limit)
    return images[chosen], labels[chosen]


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel of uint8 [N, C, H, W], both float32 [C, 1, 1].

    From counts of the 256 values, which are exact: sums of floats would depend on the number of threads.

    Raises:
        ValueError: a channel has the same value everywhere.
    """
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(1)
    if bool((variance == 0).any()):
        raise ValueError("images must vary in every channel, got a channel with one value everywhere")
    return mean.float().view(-1, 1, 1), variance.sqrt().float().view(-1, 1, 1)


def shrink(images: Tensor, size: int) -> Tensor:
    """Shrinks square uint8 images [N, C, H, H] to [N, C, size, size] by means over blocks, rounded half to even.

    Args:
        size: a divisor of H.
    """
    factor = images.shape[-1] // size
    if factor == 1:
        return images
    # In pieces: all of CIFAR would be 600 MB of floats.
    return torch.cat([F.avg_pool2d(part.float(), factor).round_().byte() for part in images.split(1000)])
