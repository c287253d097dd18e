"""`stompp bench`: a registered model, a packed file or a run of `stompp train`, timed and shown."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.bench import printout
from stompp_kernels.bench.machine import machine
from stompp_kernels.bench.network import measure, sizes
from stompp_kernels.bench.subjects import Subject, of_models, settle_norms, untrained
from stompp_kernels.conversion import load_packed
from stompp_kernels.default_dtype import default_dtype
from stompp_kernels.device import choose_device
from stompp_kernels.files import check_can_be_written, write_json
from stompp_kernels.models.bert import EncoderClassifier, tokens
from stompp_kernels.models.registry import list_models
from stompp_kernels.nn import FloatConv2d
from stompp_kernels.nn.packed import PackedLayer

_CLASSES = 1000  # of a registered model, where no option says how many
_TOKENS = 128  # of a sequence, where neither file nor option says how many


@dataclass(frozen=True)
class Options:
    """The options of `stompp bench`; see its help. None stands for an option that was not given."""

    batch: Sequence[int] = (1, 64)
    threads: Sequence[int] | None = None
    forms: Sequence[str] | None = None
    compile: bool = True
    seconds: float = 10.0
    device: str = "cpu"
    shape: Sequence[int] | None = None
    num_classes: int | None = None
    checkpoint: str | None = None
    data: str | None = None
    output: Path | None = None
    trust: bool = False


@default_dtype(torch.float32)
def bench(name: str, options: Options) -> None:
    """Times a network and prints what was found.

    Args:
        name: of a registered model, of a packed file, or of the folder of a run.

    Raises:
        ValueError: there is nothing of that name, an option is not allowed, or a result is wrong.
        FileNotFoundError: the folder has no run.
    """
    if options.output is not None:
        check_can_be_written(options.output)
    subject = find(name, options)
    rows = list(measured(subject, options))
    bytes_rows = [sizes(subject)] if options.device == "cpu" else []
    print(printout.closing(rows, bytes_rows))
    if options.output is not None:
        write_json(options.output, {"machine": machine(), "rows": rows, "bytes": bytes_rows})


def measured(
    subject: Subject, options: Options, every_layer: bool = True, keep_wrong: bool = False
) -> Iterator[dict[str, Any]]:
    """A row of :func:`measure` for each number of threads and batch size, printed as soon as it is there.

    Args:
        every_layer: print the profile layer by layer; else by kind of layer.
        keep_wrong: a wrong result becomes a row whose ``wrong`` says so, instead of an error.
    """
    for threads, batch in itertools.product(options.threads or [torch.get_num_threads()], options.batch):
        try:
            row = measure(subject, batch, threads, options.forms, options.compile, options.seconds)
        except ValueError as error:
            if not keep_wrong:
                raise
            row = {"network": subject.name, "batch": batch, "threads": threads, "ms": {}, "best_ms": {}}
            row["wrong"] = str(error)
        print(printout.setting(row, every_layer) + "\n", flush=True)
        yield row


def find(name: str, options: Options) -> Subject:
    """Finds the network of a name; a registered model's comes first, a path with a slash is never one."""
    device = choose_device(options.device)
    if name in list_models():
        _check_options(name, "a registered model", options, "num_classes")
        return untrained(name, options.num_classes or _CLASSES).to(device)
    if Path(name).is_dir():
        _check_options(name, "the folder of a run", options, "checkpoint", "data")
        return _of_run(Path(name), options, str(device))
    if Path(name).is_file() or name.endswith(".safetensors"):
        _check_options(name, "a packed file", options, "shape")
        return _of_file(Path(name), options.shape).to(device)
    raise ValueError(
        f"model must be one of {', '.join(list_models())}, a packed file or the folder of a run, got {name!r}"
    )


def _check_options(name: str, kind: str, options: Options, *own: str) -> None:
    """Refuses an option of another kind of network, which would have no effect."""
    for option in ("num_classes", "checkpoint", "data", "shape"):
        if option not in own and getattr(options, option) is not None:
            raise ValueError(f"{option} has no effect on {kind}, got {getattr(options, option)!r} with {name!r}")


def _of_run(folder: Path, options: Options, device: str) -> Subject:
    """Loads a trained network, beside the float network that its recipe began with, at random."""
    from stompp_kernels.training.build import build_model
    from stompp_kernels.training.trained import load_trained

    model, data, recipe = load_trained(folder, options.checkpoint or "last", options.data, device, options.trust)
    inputs = next(data.test_batches(2))[0]
    float_model = build_model(recipe, data, prepared=False)
    settle_norms(float_model, inputs)
    sample: Any = {key: t[:1] for key, t in inputs.items()} if isinstance(inputs, dict) else inputs[:1]
    subject = of_models(os.fspath(folder), sample, float_model, model)
    if subject.packed is None:
        raise ValueError(f"the network of {os.fspath(folder)!r} cannot be packed: {subject.reason}")
    return subject


def _of_file(path: Path, shape: Sequence[int] | None) -> Subject:
    packed = load_packed(path)
    encoder = packed.encoder if isinstance(packed, EncoderClassifier) else packed
    if getattr(encoder, "main_input_name", "") == "input_ids":
        sample: Any = _tokens(encoder, getattr(packed, "max_length", None), shape)
    else:
        sample = torch.zeros(1, *_shape_of(packed, shape), dtype=torch.float32)
    return Subject(os.fspath(path), sample, None, None, packed)


def _tokens(encoder: Any, max_length: int | None, shape: Sequence[int] | None) -> dict[str, Tensor]:
    """Makes one sequence of as many tokens as given, or as many as the network was made for, or a usual number."""
    positions = getattr(encoder.config, "max_position_embeddings", None) or _TOKENS
    length = [max_length or min(_TOKENS, positions)] if shape is None else shape
    if len(length) != 1 or not 0 < length[0] <= positions:
        raise ValueError(
            f"shape must be one number of tokens for {type(encoder).__name__}, at most {positions}, got {list(length)}"
        )
    return tokens(length[0], encoder.config.to_dict())


def _shape_of(packed: nn.Module, shape: Sequence[int] | None) -> Sequence[int]:
    """Returns the shape of one sample: given, or that of a first layer which takes features."""
    if shape is not None:
        if not shape or min(shape) < 1:
            raise ValueError(f"shape must be sizes of at least 1, got {list(shape)}")
        return shape
    first = next((m for m in packed.modules() if isinstance(m, (nn.Conv2d, FloatConv2d, nn.Linear, PackedLayer))), None)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    channels = "C" if first is None or isinstance(first, PackedLayer) else first.weight.shape[1]
    raise ValueError(f"shape must be given for a packed file: the sizes of one sample, as --shape {channels} 224 224")
