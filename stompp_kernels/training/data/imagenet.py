"""ImageNet, or any folder of images laid out like it, decoded and augmented by worker processes with Pillow."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stompp_kernels.ops.checks import check_choice
from stompp_kernels.training.data.base import Data, Inputs, check_int, check_path, limited
from stompp_kernels.training.data.datasets import DatasetData

if TYPE_CHECKING:
    from PIL import Image

# Statistics of ImageNet's pixels in [0, 1], as most models of ImageNet use them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDINGS = (".jpeg", ".jpg", ".png")
LAYOUT = "expected train/<class>/*.JPEG and val/<class>/*.JPEG, with the same classes"

Sample = tuple[str, int]  # path and label
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def load(
    path: Path | None,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    augment: bool = True,
    image_size: int = 224,
    workers: int = 4,
) -> Data:
    """Loads the images of a folder: `val` is the test split, labels number the classes in the order of their names.

    Test images are resized to 8/7 of ``image_size`` on their short side and cropped at the centre.

    Args:
        path: the folder with train and val; JPEG and PNG files count.
        augment: random crops (:func:`random_box`), resized to ``image_size``, and flips of training images; False: they
            are treated as test images.
        image_size: H and W of what comes out, in pixels.
        workers: processes that decode; 0: this one does.

    Raises:
        FileNotFoundError, ValueError: folders are missing or differ, or an option is out of range. An image that
            cannot be decoded is a ValueError when its batch is read.
    """
    check_choice("augment", augment, (True, False))
    check_int("image_size", image_size, 1)
    root = check_path("imagenet", path, LAYOUT)
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError('images are decoded with Pillow: pip install "stompp_kernels[vision]"') from error
    classes, val_classes = _folders(root / "train"), _folders(root / "val")
    if classes != val_classes:
        different = sorted(set(classes) ^ set(val_classes))[:3]
        raise ValueError(f"train and val of {root} must have the same classes, got {different} in one only; {LAYOUT}")
    train = _samples(root / "train", classes, "train_limit", train_limit)
    test = _samples(root / "val", classes, "test_limit", test_limit)
    images = _Images(train, image_size, augment), _Images(test, image_size, False)
    return _Folder("imagenet", *images, num_classes=len(classes), workers=workers)


def _folders(split: Path) -> list[str]:
    """The names of the classes; hidden folders are none, such as those that notebooks and file managers leave."""
    names = []
    if split.is_dir():
        for entry in os.scandir(split):
            if not entry.name.startswith(".") and _kind(entry) == "a folder":
                names.append(entry.name)
    if not names:
        raise FileNotFoundError(f"{split} has no folders of images: {LAYOUT}")
    return sorted(names)


def _samples(split: Path, classes: list[str], limit_name: str, limit: int | None) -> list[Sample]:
    samples = []
    for label, name in enumerate(classes):
        files = []
        for entry in os.scandir(split / name):
            # macOS keeps a hidden "._name.jpg" beside a file on disks of other systems: it is no image.
            if not entry.name.startswith(".") and entry.name.lower().endswith(ENDINGS):
                if _kind(entry) != "a file":
                    raise ValueError(f"{entry.path} must be an image's file, got {_kind(entry)}; {LAYOUT}")
                files.append(entry.name)
        if not files:
            raise FileNotFoundError(f"{split / name} has no images: {LAYOUT}")
        samples += [(os.path.join(split, name, file), label) for file in sorted(files)]
    return [samples[i] for i in limited(limit_name, torch.tensor([label for _, label in samples]), limit).tolist()]


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry of a folder is; links are followed."""
    try:
        if entry.is_file():
            return "a file"
        if entry.is_dir():
            return "a folder"
        entry.stat()
    except OSError as error:  # a link that leads nowhere, or to itself
        raise ValueError(f"{entry.path} cannot be read: {error.strerror}; {LAYOUT}") from error
    return "a pipe, a socket or a device"


class _Images(Dataset):
    """Images, uint8 [3, H, W], augmented with torch's random numbers, and their labels."""

    def __init__(self, samples: list[Sample], image_size: int, augment: bool) -> None:
        self.samples, self.image_size, self.augment = samples, image_size, augment

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = _decode(path)
        pixels = _crop_and_flip(image, self.image_size) if self.augment else _centre(image, self.image_size, path)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), label


def _decode(path: str) -> Image.Image:
    """Decodes an image into RGB.

    Raises:
        ValueError: it is damaged, neither JPEG nor PNG, or has more pixels than Pillow takes for an image; names it.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG")) as file:
                return file.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} must have at most {Image.MAX_IMAGE_PIXELS} pixels, it has more") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is damaged: it is neither JPEG nor PNG") from error
    except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path} is damaged: {reason}") from error


def _crop_and_flip(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    from PIL.Image import Resampling

    width, height = image.size
    crop = image.crop(random_box(width, height)).resize((size, size), Resampling.BILINEAR)
    flip = bool(torch.randint(2, ()))
    return np.array(crop)[:, :: -1 if flip else 1]


def _centre(image: Image.Image, size: int, path: str) -> np.ndarray:
    """uint8 [size, size, 3]."""
    from PIL.Image import MAX_IMAGE_PIXELS, Resampling

    short = round(size * 8 / 7)
    width, height = (short * side // min(image.size) for side in image.size)
    if MAX_IMAGE_PIXELS is not None and width * height > max(MAX_IMAGE_PIXELS, 4 * short * short):
        raise ValueError(f"{path} is too long for its width: resized, its {image.size} would be {width, height} pixels")
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Resampling.BILINEAR)
    return np.array(resized.crop((left, top, left + size, top + size)))


def random_box(width: int, height: int, generator: torch.Generator | None = None) -> Box:
    """Draws a crop of 8 % to all of an image's area, sides as 3:4 to 4:3 (Szegedy et al., 2015, arXiv 1409.4842).

    Ten tries; for an image so long that none fits, the largest crop of such sides at the centre.
    """
    for area, ratio, x, y in torch.rand(10, 4, generator=generator, dtype=torch.float32).tolist():
        area = (0.08 + 0.92 * area) * width * height
        ratio = (4 / 3) ** (2 * ratio - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class _Folder(DatasetData):
    def _inputs(self, images: Inputs) -> Tensor:
        # Normalized on the device, to which bytes travel faster than floats.
        assert isinstance(images, Tensor)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(3, 1, 1) for values in (MEAN, STD)
        )
        return (images.to(self.device, non_blocking=True).float() / 255 - mean) / std
