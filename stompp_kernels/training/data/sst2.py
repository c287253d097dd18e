"""SST-2 (Socher et al., 2013): sentences of film reviews, negative (0) or positive (1), in GLUE's files."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from stompp_kernels.models.hub import from_hub
from stompp_kernels.training.data.base import Data, check_file, check_int, check_path, limited

KEYS = ("input_ids", "attention_mask")
LINE_BYTES = 1 << 20  # of a sentence; the longest of SST-2 has 268
LAYOUT = "expected train.tsv and dev.tsv, whose first line names the columns, sentence and label, parted by tabs"


def load(
    path: Path | None,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    tokenizer: str = "bert-base-uncased",
    max_length: int = 64,
) -> Data:
    """Loads sentences as tokens, all padded or cut to ``max_length``.

    The test split is dev.tsv, on which SST-2 figures are reported: GLUE keeps the labels of its test.tsv to itself.

    Args:
        path: the folder with train.tsv and dev.tsv.
        tokenizer: a folder or a model's name, as transformers.AutoTokenizer takes it.
        max_length: tokens of a sample, the special ones included.

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged, or an option is out of range.
    """
    check_int("max_length", max_length, 3)
    root = check_path("sst2", path, LAYOUT)
    train, test = (
        _read(root / "train.tsv", "train_limit", train_limit),
        _read(root / "dev.tsv", "test_limit", test_limit),
    )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError('sst2 needs a tokenizer: pip install "stompp_kernels[transformers]"') from error
    tokenize = from_hub(AutoTokenizer, tokenizer, "tokenizer")

    def tokens(sentences: list[str]) -> dict[str, Tensor]:
        encoded = tokenize(sentences, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        return {key: encoded[key] for key in KEYS}

    return _Sentences((tokens(train[0]), train[1]), (tokens(test[0]), test[1]))


class _Sentences(Data):
    """Tokens, int64 [N, max_length], and labels, whole in memory."""

    def __init__(self, train: tuple[dict[str, Tensor], Tensor], test: tuple[dict[str, Tensor], Tensor]) -> None:
        super().__init__("sst2", 2, len(train[1]), len(test[1]))
        self.train_tokens, self.train_labels = train
        self.test_tokens, self.test_labels = test

    def _train_batches(
        self, order: Tensor, stream: tuple[int, int], numbers: range, part: slice
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        indices = order[:, part].to(self.device)
        for k in numbers:
            yield _select(self.train_tokens, indices[k]), self.train_labels[indices[k]]

    def test_batches(self, batch_size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        check_int("batch_size", batch_size, 1)
        indices = torch.arange(self.test_size, device=self.device).split(batch_size)
        return ((_select(self.test_tokens, batch), self.test_labels[batch]) for batch in indices)

    def example_inputs(self) -> dict[str, Tensor]:
        return {key: tokens[:1] for key, tokens in self.train_tokens.items()}


def _select(tokens: dict[str, Tensor], indices: Tensor) -> dict[str, Tensor]:
    return {key: values[indices] for key, values in tokens.items()}


def _read(path: Path, limit_name: str, limit: int | None) -> tuple[list[str], Tensor]:
    """Reads sentences and labels int64 [N] of a file, the first of each class if there is a limit."""
    check_file(path, LAYOUT)
    try:
        with open(path, "rb") as file:
            sentences, labels = _parse(file)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; {LAYOUT}") from error
    chosen = limited(limit_name, labels, limit)
    return [sentences[i] for i in chosen.tolist()], labels[chosen]


def _parse(file: BinaryIO) -> tuple[list[str], Tensor]:
    columns: list[str] = []
    sentences, labels = [], []
    for number, line in _lines(file):
        fields = line.split("\t")  # quotes mean nothing
        if number == 1:
            columns = fields
            if columns.count("sentence") != 1 or columns.count("label") != 1:
                raise ValueError(f"its columns must be sentence and label, got {reprlib.repr(columns)}")
            continue
        named = dict(zip(columns, fields, strict=False))
        if named.get("label") not in ("0", "1"):
            raise ValueError(f"the label must be 0 or 1, got {reprlib.repr(named.get('label'))} in line {number}")
        if len(fields) != len(columns):
            raise ValueError(f"line {number} must have {len(columns)} columns, it has {len(fields)}")
        sentences.append(named["sentence"])
        labels.append(int(named["label"]))
    if not columns:
        raise ValueError("its columns must be sentence and label, and it is empty")
    if not labels:
        raise ValueError("it has no line beside the first")
    return sentences, torch.tensor(labels)


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Number and text of each line, which ends with a newline alone: a sentence may hold other ends of Unicode's."""
    number = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise ValueError(f"line {number} must have at most {LINE_BYTES} bytes, it has more")
        if b"\0" in line:
            raise ValueError(f"line {number} has a NUL byte, which no text has")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not in UTF-8: {error}") from error
        yield number, text.removeprefix("\ufeff" if number == 1 else "").removesuffix("\n")
