"""Whether packed networks of the corpus are slower than float ones for one sample, and whether sk.convert says so."""

from __future__ import annotations

import statistics
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import stompp_kernels as sk
from corpus.network import Network
from stompp_kernels.bench.turns import sample
from stompp_kernels.progression.example_run import as_arguments

# By less medians differ from run to run.
SLOWER = 1.05


@dataclass(frozen=True)
class Speed:
    """How long calls of one sample take.

    Attributes:
        name: of the network.
        float_ms: median of the float network's calls, which take turns with the packed one's.
        packed_ms: median of the packed network's.
        ratio: median of the packed network's time over the float one's, of two calls in turns.
        warned: whether ``sk.convert``, given the sample to verify, said that the packed network is slower.
    """

    name: str
    float_ms: float
    packed_ms: float
    ratio: float
    warned: bool

    @property
    def is_silent(self) -> bool:
        return self.ratio > SLOWER and not self.warned


def compare(network: Network, seconds: float) -> Speed:
    """Converts a network whose layers are all binary, which nobody trained, and times it and the float one in turns."""
    torch.manual_seed(0)
    float_model, inputs = network.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = sk.prepare(float_model, inputs, **{"on_refusal": "keep", **network.options})
        sk.StoMPP(model, total_steps=10_000, regime="vanilla_ste")
    float_model.eval()
    one = _one_sample(float_model, inputs)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        packed = sk.convert(model.eval(), verify=one)
    warned = any("slower than a float one" in str(warning.message) for warning in said)
    args, kwargs = as_arguments(one)
    sides = {"float": lambda: float_model(*args, **kwargs), "packed": lambda: packed(*args, **kwargs)}
    with torch.no_grad():
        times = sample(sides, seconds)
    ratio = statistics.median(own / other for own, other in zip(times["packed"], times["float"], strict=True))
    return Speed(network.name, statistics.median(times["float"]), statistics.median(times["packed"]), ratio, warned)


def _one_sample(model: nn.Module, inputs: Any) -> Any:
    """The first sample of a batch of two; of inputs that hold no such batch all."""
    one = tree_map(lambda x: x[:1] if isinstance(x, Tensor) and x.dim() and len(x) == 2 else x, inputs)
    args, kwargs = as_arguments(one)
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception:  # of the model's forward: it reads a graph, say
        return inputs
    return one
