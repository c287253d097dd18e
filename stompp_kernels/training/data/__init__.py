"""Data sets by name. A batch is a function of seed, epoch and its number, so that a run resumes to the same bits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from stompp_kernels.named import is_named, named_function
from stompp_kernels.ops.checks import check_choice
from stompp_kernels.training.data import cifar, digits, imagenet, sst2
from stompp_kernels.training.data.base import Data, Inputs
from stompp_kernels.training.data.datasets import as_data

__all__ = ["Data", "Inputs", "load"]

_LOADERS: dict[str, Callable[..., Data]] = {
    "digits": digits.load,
    "cifar10": partial(cifar.load, "cifar10"),
    "cifar100": partial(cifar.load, "cifar100"),
    "imagenet": imagenet.load,
    "sst2": sst2.load,
}


def load(name: str, path: str | Path | None = None, **options: Any) -> Data:
    """Loads a data set, on the CPU; ``data.to(device)`` moves it.

    ================  ============================================================================================
    name              path: what is expected there; options and their defaults
    ================  ============================================================================================
    digits            None (they come with scikit-learn); augment=True
    cifar10,          the folder that holds cifar-10-batches-bin or cifar-10-batches-py, or that folder itself
    cifar100          (cifar-100-binary, cifar-100-python); augment=True or "randaugment", image_size=32
    imagenet          a folder with train/<class>/*.JPEG and val/<class>/*.JPEG; augment=True, image_size=224, workers=4
    sst2              a folder with train.tsv and dev.tsv; tokenizer="bert-base-uncased", max_length=64
    module:function   what your function takes as path, and its options; it returns datasets (train, test) of pairs
                      (inputs, label), a dict {"train": ..., "test": ...} with perhaps num_classes, collate and workers
                      (processes that load), or :class:`Data`
    ================  ============================================================================================

    All but the last take train_limit and test_limit: that many samples, as evenly from the classes as they allow, each
    class's first ones in the order of the files. None: all.

    Returns:
        Training and test samples. Images are float32 [B, C, H, W], tokens a dict of int64 [B, max_length], labels
        int64 [B].

    Raises:
        ValueError: an unknown name or option, a value out of range, or damaged files.
        FileNotFoundError: files are missing.
        ImportError: an optional library is missing.

    Example:
        >>> from stompp_kernels.training import data
        >>> digits = data.load("digits", train_limit=100)
        >>> images, labels = next(digits.train_batches(epoch=0, batch_size=20, seed=0))
        >>> images.shape, labels.dtype
        (torch.Size([20, 1, 8, 8]), torch.int64)
    """
    folder = None if path is None else Path(path).expanduser()
    if is_named(name):
        loader = named_function("data.name", name)
        options = options if folder is None else {"path": folder, **options}
        try:
            inspect.signature(loader).bind(**options)
        except TypeError as error:
            raise ValueError(f"data.options of {name!r} do not fit the function: {error}") from error
        return as_data(name, loader(**options))
    check_options(name, options)
    return _LOADERS[name](folder, **options)


def check_options(name: str, options: Iterable[str]) -> None:
    """Checks that a data set is known, and takes options of these names; of a function of one's own, that it is there.

    Raises:
        ValueError: it is not, or does not.
    """
    if is_named(name):
        named_function("data.name", name)
        return
    check_choice("name", name, tuple(_LOADERS))
    parameters = inspect.signature(_LOADERS[name]).parameters.values()
    allowed = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise ValueError(f"options of data set {name!r} must be among {', '.join(allowed)}, got {option!r}")
