"""A training loop for a model, a data set and a loss of one's own."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stompp_kernels.progression import StoMPP
from stompp_kernels.progression.example_run import as_arguments
from stompp_kernels.training.micro_batches import backward

Callback = Callable[["Fit"], None]


@dataclass
class Fit:
    """Tells callbacks where :func:`fit` stands; they run after each optimizer step.

    Attributes:
        model, optimizer, progression: what is trained; progression is None where there is none.
        step: optimizer steps done by this call.
        epoch: epochs done by this call.
        loss: of the last step, a tensor on the model's device.
        stop: set it to True, and the loop ends after this step.

    Example:
        >>> def stop_early(state):
        ...     state.stop = state.step == 100
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    progression: StoMPP | None
    step: int = 0
    epoch: int = 0
    loss: Tensor | None = None
    stop: bool = False


def fit(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Any, Any], Tensor] | None = None,
    progression: StoMPP | Mapping[str, Any] | None = None,
    scheduler: Any = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    callbacks: Sequence[Callback] = (),
    accumulate: int = 1,
    max_gradient_norm: float | None = None,
    autocast: torch.dtype | None = None,
) -> list[dict[str, Any]]:
    """Trains a model, and commits its binary layers as it goes.

    Args:
        model: any module: prepared by ``sk.prepare``, or a float one without a ``progression``.
        train_loader: gives batches: pairs (inputs, target), or mappings of keyword arguments, as of transformers.
            Inputs of a pair are a tensor, a tuple of positional or a mapping of keyword arguments.
        epochs: passes over the loader.
        optimizer: of the prepared model's parameters.
        loss: takes (output, target), for mappings (output, batch), and returns a mean. None: cross-entropy of the
            output or its ``logits``; for mappings the output's own ``loss``.
        progression: a :class:`stompp_kernels.StoMPP` on the model, or its options, such as ``{"regime": "ste"}``, with
            which one is made for the steps of this call. One that went on before must have as many steps left.
        scheduler: of learning rates; it steps after each optimizer step.
        evaluate: called with the model in eval mode, without gradients, after each epoch.
        callbacks: functions of :class:`Fit`, called in turn after each optimizer step.
        accumulate: batches of an optimizer step; at an epoch's end there may be fewer.
        max_gradient_norm: scales down a larger gradient of the whole model.
        autocast: forward runs under autocast to this type.

    Returns:
        A record of each epoch: epoch, step, mean loss, lr; with a progression frontier, units, p and frozen, see
        :class:`stompp_kernels.progression.Progress`; with ``evaluate`` what that returned, as evaluation.

    Raises:
        ValueError: a number is out of range, the loader has no batch, or no length where that is needed, or the
            progression has another number of steps left than this call makes.

    Example:
        >>> x, y = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
        >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), x[:4])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> records = sk.training.fit(model, loader, epochs=3, optimizer=optimizer, progression={"regime": "ste"})
        >>> records[-1]["step"], records[-1]["frontier"], records[-1]["units"]
        (12, 2, 2)
    """
    for name, value in (("epochs", epochs), ("accumulate", accumulate)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    state = Fit(model, optimizer, _progression(model, train_loader, epochs, accumulate, progression))
    device = next(
        (tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())), torch.device("cpu")
    )
    criterion = loss or _default_loss
    records: list[dict[str, Any]] = []

    def learn(batches: list[Any]) -> Tensor | None:
        optimizer.zero_grad()
        pairs = [_inputs_and_target(_to(batch, device)) for batch in batches]
        value = backward(lambda inputs: _call(model, inputs), criterion, pairs, context)[0]
        if value is not None and max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)
        return value

    def context() -> Any:
        return nullcontext() if autocast is None else torch.autocast(device.type, autocast)

    while state.epoch < epochs and not state.stop:
        model.train()
        losses: list[Tensor] = []
        for batches in _chunks(train_loader, accumulate):
            state.loss = learn(batches)
            if state.loss is None:
                warnings.warn("fit ends: no gradient reaches a parameter any more", RuntimeWarning, stacklevel=2)
                return records
            losses.append(state.loss)
            optimizer.step()
            for follower in (state.progression, scheduler):
                if follower is not None:
                    follower.step()
            state.step += 1
            for callback in callbacks:
                callback(state)
            if state.stop:
                break
        if not losses:
            raise ValueError("train_loader must give at least one batch in an epoch, it gave none")
        state.epoch += 1
        records.append(_record(state, losses, evaluate))
    return records


def _progression(
    model: nn.Module, loader: Any, epochs: int, accumulate: int, given: StoMPP | Mapping[str, Any] | None
) -> StoMPP | None:
    if given is None:
        return None
    try:
        batches = len(loader)
    except TypeError:  # a generator, or a DataLoader over one
        batches = None
    if isinstance(given, StoMPP):
        left = given.total_steps - given.progress().step
        steps = None if batches is None else epochs * math.ceil(batches / accumulate)
        if steps is not None and steps != left:
            raise ValueError(f"progression must have as many steps left as fit makes, {steps}, got {left}")
        return given
    if batches is None:
        raise ValueError("progression must be a StoMPP where train_loader has no length, got its options")
    return StoMPP(model, epochs * math.ceil(batches / accumulate), **given)


def _chunks(loader: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batches = iter(loader)
    while chunk := list(itertools.islice(batches, size)):
        yield chunk


def _to(value: Any, device: torch.device) -> Any:
    """A batch on a device; what is no tensor stays."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    return type(value)(_to(item, device) for item in value) if isinstance(value, (tuple, list)) else value


def _inputs_and_target(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        return batch, batch
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(f"train_loader must give pairs (inputs, target) or mappings, got {type(batch).__name__}")
    return tuple(batch)


def _call(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_arguments(tuple(inputs) if isinstance(inputs, list) else inputs)
    return model(*args, **kwargs)


def _default_loss(output: Any, target: Any) -> Tensor:
    if isinstance(target, Mapping):
        return output["loss"] if isinstance(output, Mapping) else output.loss
    return F.cross_entropy(getattr(output, "logits", output).float(), target)


def _record(state: Fit, losses: list[Tensor], evaluate: Callable[[nn.Module], Any] | None) -> dict[str, Any]:
    record = {"epoch": state.epoch, "step": state.step, "loss": float(torch.stack(losses).mean())}
    record["lr"] = state.optimizer.param_groups[0]["lr"]
    if state.progression is not None:
        now = state.progression.progress()
        record |= {"frontier": now.frontier, "units": now.units, "p": now.p, "frozen": now.frozen}
    if evaluate is not None:
        state.model.eval()
        with torch.no_grad():
            record["evaluation"] = evaluate(state.model)
    return record
