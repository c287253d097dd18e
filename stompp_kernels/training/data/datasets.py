"""Data sets of a user's own: any pair of torch's map-style datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from stompp_kernels.training.data.base import Data, Inputs, check_int, mixed_seed


class DatasetData(Data):
    """Training and test samples of two datasets whose items are pairs (inputs, label).

    A dataset may draw from torch's random numbers, which are seeded for each sample, so that a run resumes to the same
    bits. Inputs are a tensor, or a dict of tensors, of one sample.

    Args:
        train, test: have ``__len__`` and ``__getitem__``; ``train`` may have ``classes``, or labels that are counted.
        collate: makes a batch of a list of items.

    Raises:
        ValueError: a dataset is empty.
    """

    def __init__(
        self, name: str, train: Any, test: Any, num_classes: int | None, collate: Callable[[list[Any]], Any] | None
    ) -> None:
        for part, dataset in (("train", train), ("test", test)):
            if not len(dataset):
                raise ValueError(f"{part} of {name!r} must have samples, it has none")
        if num_classes is None:
            classes = getattr(train, "classes", None)
            num_classes = len(classes) if classes else 1 + max(int(train[i][1]) for i in range(len(train)))
        super().__init__(name, num_classes, len(train), len(test))
        self._train, self._test, self._collate = train, test, collate or default_collate

    def _train_batches(
        self, order: Tensor, stream: tuple[int, int], numbers: range, part: slice
    ) -> Iterator[tuple[Inputs, Tensor]]:
        for k in numbers:
            places = range(order.shape[1])[part]
            yield self._batch(self._train, [(int(order[k, i]), mixed_seed(*stream, k, i)) for i in places])

    def test_batches(self, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
        check_int("batch_size", batch_size, 1)
        return (
            self._batch(self._test, [(i, i) for i in indices.tolist()])
            for indices in torch.arange(self.test_size).split(batch_size)
        )

    def example_inputs(self) -> Inputs:
        return self._batch(self._test, [(0, 0)])[0]

    def _batch(self, dataset: Any, items: list[tuple[int, int]]) -> tuple[Inputs, Tensor]:
        samples = []
        with torch.random.fork_rng(devices=[]):
            for index, seed in items:
                torch.manual_seed(seed)
                samples.append(dataset[index])
        inputs, labels = self._collate(samples)
        if isinstance(inputs, Tensor):
            return inputs.to(self.device), labels.to(self.device)
        return {key: value.to(self.device) for key, value in inputs.items()}, labels.to(self.device)


def as_data(name: str, made: Any) -> Data:
    """Returns what a user's function made: :class:`Data` itself, or datasets (train, test) or {"train": ..., ...}.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(made, Data):
        return made
    if isinstance(made, (tuple, list)) and len(made) == 2:
        made = {"train": made[0], "test": made[1]}
    allowed = {"train", "test", "num_classes", "collate"}
    if not isinstance(made, dict) or not {"train", "test"} <= made.keys() <= allowed:
        raise ValueError(
            f"{name!r} must return a pair of datasets (train, test), a dict with the keys train, test and perhaps "
            f"num_classes and collate, or Data, got {type(made).__name__}"
        )
    return DatasetData(name, made["train"], made["test"], made.get("num_classes"), made.get("collate"))
