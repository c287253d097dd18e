"""scikit-learn's handwritten digits: 1797 images of 8x8, 10 classes (UCI Optical Recognition of Handwritten Digits)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Digits:
    """A stratified split; images float32 [N, 1, 8, 8] in [0, 1], labels int64 [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float

    def normalize(self, images: Tensor) -> Tensor:
        """Zero mean and unit variance, by the training images' statistics."""
        return (images - self.mean) / self.std


def load_digits(test_fraction: float = 0.25, seed: int = 0) -> Digits:
    """The data set that comes with scikit-learn (the `demo` extra), split into training and test images."""
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('the digits come with scikit-learn: pip install "stompp_kernels[demo]"') from error
    images, labels = load(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=test_fraction, stratify=labels, random_state=seed
    )

    def as_images(x: object) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16

    train = as_images(train_x)
    return Digits(
        train,
        torch.as_tensor(train_y),
        as_images(test_x),
        torch.as_tensor(test_y),
        float(train.mean()),
        float(train.std()),
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random small rotation, scaling, shear and shift of each image: up to 10 degrees, 10 %, 0.1 and 0.8 pixels."""

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator) - 1

    n = len(images)
    angle, scale, shear = math.radians(10) * uniform(n), 1 + 0.1 * uniform(n, 2), 0.1 * uniform(n)
    theta = torch.empty(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * scale[:, 0], -angle.sin() + shear
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos() * scale[:, 1]
    theta[:, :, 2] = 0.2 * uniform(n, 2)  # of half an image
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="zeros")
