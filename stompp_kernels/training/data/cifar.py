"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the files of their home page, in the binary or the python version."""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stompp_kernels.ops.checks import check_choice
from stompp_kernels.training.data.augment import CropAndFlip, RandAugment
from stompp_kernels.training.data.base import Data, check_file, check_path
from stompp_kernels.training.data.cifar_pickle import read_pickled_batch
from stompp_kernels.training.data.images import ImageData, first_images, shrink

PIXELS = 3 * 32 * 32  # planes of red, green and blue, row by row


@dataclass(frozen=True)
class _Version:
    """A folder of files; in the binary version records begin with ``label_bytes``, the last of which is the label.

    ``images`` is the most that a training file has; the test file has at most 10,000.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    images: int
    label_bytes: int = 0
    label_key: str = ""

    def __str__(self) -> str:
        content = f"records of {self.label_bytes} + {PIXELS} bytes" if self.label_bytes else "the python version"
        return f"{self.folder}/{{{', '.join((*self.train, self.test))}}} ({content})"


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BINARY_BATCHES = tuple(f"{name}.bin" for name in _BATCHES)
_VERSIONS = {
    "cifar10": (
        _Version("cifar-10-batches-bin", _BINARY_BATCHES, "test_batch.bin", 10_000, label_bytes=1),
        _Version("cifar-10-batches-py", _BATCHES, "test_batch", 10_000, label_key="labels"),
    ),
    "cifar100": (
        _Version("cifar-100-binary", ("train.bin",), "test.bin", 50_000, label_bytes=2),
        _Version("cifar-100-python", ("train",), "test", 50_000, label_key="fine_labels"),
    ),
}
_CLASSES = {"cifar10": 10, "cifar100": 100}
_TEST_IMAGES = 10_000


def load(
    name: str,
    path: Path | None,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    augment: bool | str = True,
    image_size: int = 32,
) -> Data:
    """Loads CIFAR at 32x32, or shrunk by averaging pixels; CIFAR-100 with its 100 fine labels.

    Files may hold fewer images than the originals. The python version is read without running its pickles.

    Args:
        path: a folder that holds the binary or the python version's folder (the binary one comes first), or is it.
        augment: random crops in a frame of image_size // 8 black pixels and flips of training images; "randaugment":
            two random changes of torchvision's RandAugment after these.
        image_size: H and W of the images: 32, 16, 8, 4, 2 or 1.

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged, or an option is out of range.
    """
    check_choice("augment", augment, (True, False, "randaugment"))
    check_choice("image_size", image_size, (32, 16, 8, 4, 2, 1))
    augmentation = RandAugment(image_size) if augment == "randaugment" else CropAndFlip(image_size) if augment else None
    layout = f"expected {' or '.join(map(str, _VERSIONS[name]))}"
    root = check_path(name, path, layout)
    version, folder = _find(root, name, layout)
    for file in (*version.train, version.test):
        check_file(folder / file, layout)

    def read(files: tuple[str, ...], limit_name: str, limit: int | None) -> tuple[Tensor, Tensor]:
        parts = [_read(folder / file, version, _CLASSES[name], layout) for file in files]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        images, labels = first_images(limit_name, images, labels, limit)
        return shrink(images, image_size), labels

    return ImageData(
        name,
        _CLASSES[name],
        read(version.train, "train_limit", train_limit),
        read((version.test,), "test_limit", test_limit),
        augmentation,
    )


def _find(root: Path, name: str, layout: str) -> tuple[_Version, Path]:
    """Finds the version that is there, and its folder: inside ``root`` or ``root`` itself."""
    for version in _VERSIONS[name]:
        if (root / version.folder).is_dir():
            return version, root / version.folder
    for version in _VERSIONS[name]:
        if any(os.path.lexists(root / file) for file in (*version.train, version.test)):
            return version, root
    raise FileNotFoundError(f"no {name} in {root}: {layout}")


def _read(path: Path, version: _Version, classes: int, layout: str) -> tuple[Tensor, Tensor]:
    """Reads images uint8 [N, 3, 32, 32] and labels int64 [N] of a file."""
    most = _TEST_IMAGES if path.name == version.test else version.images
    try:
        if version.label_bytes:
            pixels, labels = _read_records(path, version.label_bytes, most)
        else:
            pixels, labels = read_pickled_batch(path, version.label_key, PIXELS, most)
        outside = [label for label in labels if not 0 <= label < classes]
        if outside:
            raise ValueError(f"labels must be in [0, {classes}), got {reprlib.repr(outside[0])}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; {layout}") from error
    return torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels)


def _read_records(path: Path, label_bytes: int, most: int) -> tuple[np.ndarray, list[int]]:
    """Reads pixels uint8 [N, PIXELS] and N labels."""
    size, found = label_bytes + PIXELS, path.stat().st_size  # before anything is read: a file may be sparse and huge
    if found == 0 or found % size or found > most * size:
        raise ValueError(f"its size must be a multiple of {size} bytes, at most {most * size}, got {found}")
    records = np.fromfile(path, dtype=np.uint8, count=found).reshape(-1, size)
    return np.ascontiguousarray(records[:, label_bytes:]), records[:, label_bytes - 1].tolist()
