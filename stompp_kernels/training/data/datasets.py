"""Data sets of a user's own: any pair of torch's map-style datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from stompp_kernels.training.data.base import Data, Inputs, check_int, mixed_seed

Item = tuple[int, int]  # index and seed


class DatasetData(Data):
    """Training and test samples of two datasets whose items are pairs (inputs, label).

    A dataset may draw from torch's random numbers, which are seeded for each sample, so that a run resumes to the same
    bits. Inputs are a tensor, or a dict of tensors, of one sample.

    Args:
        train, test: have ``__len__`` and ``__getitem__``; ``train`` may have ``classes``, or labels that are counted.
        collate: makes a batch of a list of items.
        workers: processes that load batches; 0: this one does.

    Raises:
        ValueError: a dataset is empty, or ``workers`` is negative.
    """

    def __init__(
        self,
        name: str,
        train: Any,
        test: Any,
        num_classes: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
    ) -> None:
        check_int("workers", workers, 0)
        for part, dataset in (("train", train), ("test", test)):
            if not len(dataset):
                raise ValueError(f"{part} of {name!r} must have samples, it has none")
        if num_classes is None:
            classes = getattr(train, "classes", None)
            num_classes = len(classes) if classes else 1 + max(int(train[i][1]) for i in range(len(train)))
        super().__init__(name, num_classes, len(train), len(test))
        self.train, self.test = train, test
        self._collate, self._workers = partial(_collate_or_error, collate or default_collate), workers

    def _train_batches(
        self, order: Tensor, stream: tuple[int, int], numbers: range, part: slice
    ) -> Iterator[tuple[Inputs, Tensor]]:
        places = range(order.shape[1])[part]
        items = ([(int(order[k, i]), mixed_seed(*stream, k, i)) for i in places] for k in numbers)
        return self._batches(self.train, items, self._workers)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
        check_int("batch_size", batch_size, 1)
        indices = torch.arange(self.test_size).split(batch_size)
        return self._batches(self.test, ([(i, i) for i in batch.tolist()] for batch in indices), self._workers)

    def example_inputs(self) -> Inputs:
        return next(self._batches(self.test, [[(0, 0)]], 0))[0]

    def _batches(self, dataset: Any, items: Iterable[list[Item]], workers: int) -> Iterator[tuple[Inputs, Tensor]]:
        loader = DataLoader(
            _Seeded(dataset),
            batch_sampler=items,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw a number from the global one
            collate_fn=self._collate,
        )
        for loaded in loader:
            if isinstance(loaded, ValueError):
                raise loaded
            inputs, labels = loaded
            yield self._inputs(inputs), labels.to(self.device, non_blocking=True)

    def _inputs(self, inputs: Inputs) -> Inputs:
        """The inputs of a batch, on the device."""
        if isinstance(inputs, Tensor):
            return inputs.to(self.device, non_blocking=True)
        return {key: value.to(self.device, non_blocking=True) for key, value in inputs.items()}


class _Seeded(Dataset):
    """Item (index, seed) is that of a dataset, drawn with the seed's random numbers."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitems__(self, items: list[Item]) -> list[Any] | ValueError:
        """A batch, or the error that ends it: one raised in a worker would arrive with its traceback as its message."""
        samples = []
        with torch.random.fork_rng(devices=[]):
            for index, seed in items:
                torch.default_generator.manual_seed(seed)
                try:
                    samples.append(self._dataset[index])
                except ValueError as error:
                    return error
        return samples


def _collate_or_error(collate: Callable[[list[Any]], Any], samples: list[Any] | ValueError) -> Any:
    return samples if isinstance(samples, ValueError) else collate(samples)


def as_data(name: str, made: Any) -> Data:
    """Returns what a user's function made: :class:`Data` itself, or datasets (train, test) or {"train": ..., ...}.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(made, Data):
        return made
    if isinstance(made, (tuple, list)) and len(made) == 2:
        made = {"train": made[0], "test": made[1]}
    allowed = {"train", "test", "num_classes", "collate", "workers"}
    if not isinstance(made, dict) or not {"train", "test"} <= made.keys() <= allowed:
        raise ValueError(
            f"{name!r} must return a pair of datasets (train, test), a dict with the keys train, test and perhaps "
            f"num_classes, collate and workers, or Data, got {type(made).__name__}"
        )
    return DatasetData(name, **made)
