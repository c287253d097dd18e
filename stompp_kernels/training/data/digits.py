"""scikit-learn's handwritten digits: 1797 images of 8x8, 10 classes (UCI Optical Recognition of Handwritten Digits)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stompp_kernels.ops.checks import check_choice
from stompp_kernels.training.data.base import Data
from stompp_kernels.training.data.images import ImageData, first_images


class SmallAffine:
    """A random small rotation, scaling, shear and shift of each image: up to 10 degrees, 10 %, 0.1 and 0.8 pixels.

    What is drawn are the points to sample at, whole, so that all devices sample at the same ones.
    """

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """float32 [n, 8, 8, 2]: where the pixels of each image come from."""

        def uniform(*shape: int) -> Tensor:
            return 2 * torch.rand(*shape, generator=generator, dtype=torch.float32) - 1

        angle, scale, shear = math.radians(10) * uniform(n), 1 + 0.1 * uniform(n, 2), 0.1 * uniform(n)
        theta = torch.empty(n, 2, 3, dtype=torch.float32)
        theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * scale[:, 0], -angle.sin() + shear
        theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos() * scale[:, 1]
        theta[:, :, 2] = 0.2 * uniform(n, 2)  # of half an image
        return F.affine_grid(theta, [n, 1, 8, 8], align_corners=False)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        return F.grid_sample(images.float(), draws, align_corners=False, padding_mode="zeros")


def load(
    path: Path | None,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    augment: bool = True,
) -> Data:
    """Loads 1347 training and 450 test images of 1x8x8, split by class.

    Args:
        path: None.
        augment: small random rotations, scalings, shears and shifts of training images.

    Raises:
        ImportError: scikit-learn (the ``demo`` extra) is missing.
    """
    if path is not None:
        raise ValueError(f"path must be None for data set 'digits', which comes with scikit-learn, got {path}")
    check_choice("augment", augment, (True, False))
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('the digits come with scikit-learn: pip install "stompp_kernels[demo]"') from error
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)

    def part(name: str, x: object, y: object, limit: int | None) -> tuple[Tensor, Tensor]:
        pixels = torch.as_tensor(x).reshape(-1, 1, 8, 8).byte()  # 17 levels of grey
        return first_images(name, pixels, torch.as_tensor(y), limit)

    train, test = part("train_limit", train_x, train_y, train_limit), part("test_limit", test_x, test_y, test_limit)
    return ImageData("digits", 10, train, test, SmallAffine() if augment else None)
