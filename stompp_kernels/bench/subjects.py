"""The networks that are measured: a float original, its committed twin, and what ``sk.convert`` makes of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.conversion import convert
from stompp_kernels.models.registry import Inputs, create, example_inputs
from stompp_kernels.nn.masked import Masked

# What a model needs beside the registry's own options to have the size that its paper measures.
BERT_BASE = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_OPTIONS: dict[str, dict[str, Any]] = {"bert": {"config": BERT_BASE, "max_length": 128}}
_STATISTICS_BATCH = 4  # samples that BatchNorm takes its statistics from


@dataclass(frozen=True)
class Subject:
    """A network in the forms that are compared.

    Attributes:
        name: for tables.
        sample: an input for one sample: a tensor, or a dict of keyword arguments.
        float_model: the original in fp32, in eval mode; None where there is only a packed network.
        model: its twin with every layer committed, in eval mode; None as above.
        packed: the packed network, or None.
        reason: why there is no packed network.
    """

    name: str
    sample: Inputs
    float_model: nn.Module | None
    model: nn.Module | None
    packed: nn.Module | None
    reason: str = ""

    def inputs(self, batch: int) -> Inputs:
        """Noise for a batch of samples, or the sample's tokens again and again; images are channels_last."""
        if isinstance(self.sample, Tensor):
            return _noise(self.sample, batch)
        return {name: _noise(value, batch) for name, value in self.sample.items()}

    def to(self, device: torch.device | str) -> Subject:
        """The same on another device; its networks are moved, not copied."""
        sample = self.sample
        moved = {n: t.to(device) for n, t in sample.items()} if isinstance(sample, dict) else sample.to(device)
        float_model, model, packed = (m if m is None else m.to(device) for m in self._networks())
        return Subject(self.name, moved, float_model, model, packed, self.reason)

    def _networks(self) -> tuple[nn.Module | None, ...]:
        return self.float_model, self.model, self.packed


def _noise(sample: Tensor, batch: int) -> Tensor:
    if not sample.is_floating_point():
        return sample.repeat(batch, *(1,) * (sample.dim() - 1))
    x = torch.randn(batch, *sample.shape[1:], generator=torch.Generator().manual_seed(batch), dtype=torch.float32)
    x = x.to(sample.device)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def device_of(inputs: Inputs) -> torch.device:
    """Returns the device of inputs of either kind."""
    return (next(iter(inputs.values())) if isinstance(inputs, dict) else inputs).device


def call(network: Any, inputs: Inputs) -> Any:
    """Runs a network on inputs of either kind.

    Of several results, as transformers' models have, the first is returned.
    """
    result = network(**inputs) if isinstance(inputs, dict) else network(inputs)
    return result if isinstance(result, Tensor) else result[0]


def untrained(name: str, num_classes: int = 1000, options: Mapping[str, Any] | None = None, seed: int = 0) -> Subject:
    """Makes a registered model with random weights: what it computes takes as long as after training.

    BatchNorms get factors and shifts at random and the statistics of a batch of noise, so that signs of both kinds come
    up everywhere, as in a trained network.

    Args:
        name: one of ``sk.models.list()``. "bert" is BERT-base with 128 tokens unless ``options`` says otherwise.
        num_classes: outputs.
        options: of the model, as for ``sk.models.create``.

    Raises:
        ValueError: a name, an option or a value is not allowed; the message says what is.
    """
    chosen = {**_OPTIONS.get(name, {}), **(options or {})}
    torch.manual_seed(seed)
    float_model = create(name, num_classes, **chosen)
    model = create(name, num_classes, binarize="both", **chosen)
    for module in model.modules():
        if isinstance(module, Masked):
            module.commit()
    subject = Subject(name, example_inputs(name, **chosen), float_model, model, None)
    for network in (float_model, model):
        settle_norms(network, subject.inputs(_STATISTICS_BATCH))
    return of_models(name, subject.sample, float_model, model)


def of_models(name: str, sample: Inputs, float_model: nn.Module, model: nn.Module) -> Subject:
    """A committed model beside its float original; ``reason`` says why ``sk.convert`` refuses it, if it does."""
    packed, reason = None, ""
    try:
        packed = convert(model)
    except ValueError as error:
        reason = str(error)
    return Subject(name, sample, float_model.eval(), model.eval(), packed, reason)


@torch.no_grad()
def settle_norms(model: nn.Module, inputs: Inputs) -> None:
    """Gives BatchNorms random factors and shifts, and the statistics of a batch; leaves the model in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(std=0.2)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        call(model.train(), inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
