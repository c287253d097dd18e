"""SST-2 (Socher et al., 2013): sentences of film reviews, negative (0) or positive (1), in GLUE's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stompp_kernels.training.data.base import Data, check_int, check_path, limited

KEYS = ("input_ids", "attention_mask")
LAYOUT = "expected train.tsv and dev.tsv, whose first line names the columns, sentence and label, parted by tabs"


def load(
    path: Path | None,
    *,
    train_limit: int | None = None,
    test_limit: int | None = None,
    tokenizer: str = "bert-base-uncased",
    max_length: int = 64,
) -> Data:
    """Sentences as tokens, all padded or cut to ``max_length``.

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
    try:
        tokenize = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer must be a folder or a model's name that transformers can load, got {str(tokenizer)!r}: {error}"
        ) from error

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
    """Sentences and labels int64 [N] of a file, the first of each class if there is a limit."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {LAYOUT}")
    try:
        sentences, labels = _parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; {LAYOUT}") from error
    chosen = limited(limit_name, labels, limit)
    return [sentences[i] for i in chosen.tolist()], labels[chosen]


def _parse(text: str) -> tuple[list[str], Tensor]:
    # Not splitlines: a sentence may hold a character that Unicode counts as the end of a line. Quotes mean nothing.
    header, *lines = text.removesuffix("\n").split("\n")
    columns = header.split("\t")
    if not {"sentence", "label"} <= set(columns):
        raise ValueError(f"its columns must be sentence and label, got {columns}")
    sentences, labels = [], []
    for number, line in enumerate(lines, start=2):
        fields = dict(zip(columns, line.split("\t"), strict=False))
        if fields.get("label") not in ("0", "1"):
            raise ValueError(f"the label must be 0 or 1, got {fields.get('label')!r} in line {number}")
        sentences.append(fields["sentence"])
        labels.append(int(fields["label"]))
    if not labels:
        raise ValueError("it has no line beside the first")
    return sentences, torch.tensor(labels)
