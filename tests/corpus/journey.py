"""The way of one network through the package: prepare, train, convert, save, load, export, compile, package."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import stompp_kernels as sk
from corpus.network import Network
from stompp_kernels.nn import BinaryLayer
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.progression.example_run import as_arguments, plain

STEPS = 2
_HELD = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@dataclass
class Journey:
    """What became of a network.

    Attributes:
        name, family: of the network.
        parameters: of the float network.
        binarized: number of layers whose weights are binary.
        layers: number of layers with weights, those included.
        share: of the float network's parameters, those that are binary.
        reached: the stages that ended well, in order.
        failures: by the stage that failed, why.
    """

    name: str
    family: str
    parameters: int = 0
    binarized: int = 0
    layers: int = 0
    share: float = 0.0
    reached: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def travel(network: Network, compiled: bool = False, packaged: bool = False) -> Journey:
    """Takes a network through all stages, to the first that fails; saving and exporting are tried both."""
    torch.manual_seed(0)
    float_model, inputs = network.make()
    journey = Journey(network.name, network.family, sum(p.numel() for p in float_model.parameters()))
    model: Any = _stage(journey, "prepare", lambda: _prepare(journey, float_model, inputs, network.options))
    if model is None or not _stage(journey, "train", lambda: _train(model, inputs)):
        return journey
    packed: Any = _stage(journey, "convert", lambda: _convert(model, inputs))
    if packed is None:
        return journey
    with tempfile.TemporaryDirectory() as folder:
        _stage(journey, "save and load", lambda: _save_and_load(packed, inputs, Path(folder) / "net.safetensors"))
        _stage(journey, "export", lambda: _export(packed, inputs, Path(folder) / "net.pt2"))
        if compiled:
            _stage(journey, "compile", lambda: _compile(packed, inputs))
        if packaged:
            _stage(journey, "package", lambda: _package(packed, inputs, Path(folder) / "package.pt2"))
    return journey


def _stage(journey: Journey, name: str, run: Callable[[], Any]) -> Any:
    """The result of a stage, or None where it failed; what it says and warns of is noted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = run()
    except Exception as error:  # of whatever kind: the table says it
        journey.failures[name] = f"{type(error).__name__}: {error}"
        return None
    journey.reached.append(name)
    return result


def _prepare(journey: Journey, float_model: nn.Module, inputs: Any, options: dict[str, Any]) -> nn.Module:
    model, report = sk.prepare(float_model, inputs, **{"on_refusal": "keep", **options})
    names = report.binarized()
    weights = {id(layer.weight): layer.weight.numel() for layer in map(model.get_submodule, names)}
    journey.binarized, journey.share = len(names), sum(weights.values()) / journey.parameters
    journey.layers = sum(isinstance(m, (*_HELD, BinaryLayer)) for m in model.modules())
    return model


def _train(model: nn.Module, inputs: Any) -> bool:
    """A few steps with every layer binary: what they leave is a committed network with statistics of its own."""
    progression = sk.StoMPP(model, total_steps=10_000, regime="vanilla_ste")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(y.float().square().mean() for y in tensors_of(_call(model, inputs))).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)  # small images let BatchNorm's gradients explode
        optimizer.step()
        progression.step()
    return True


def _convert(model: nn.Module, inputs: Any) -> nn.Module:
    packed = sk.convert(model.eval(), verify=inputs)
    # One that runs at several places has a twin at each.
    names = {module.replaces[0] for module in packed.modules() if isinstance(module, PackedLayer)}
    expected = {name for name, module in model.named_modules() if isinstance(module, BinaryLayer)}
    if names != expected:
        raise AssertionError(f"binary, but not packed: {sorted(expected - names)}")
    return packed


def _save_and_load(packed: nn.Module, inputs: Any, path: Path) -> bool:
    sk.save_packed(packed, path)
    _check_equal(_call(sk.load_packed(path), inputs), _call(packed, inputs), 0.0)
    return True


def _export(packed: nn.Module, inputs: Any, path: Path) -> bool:
    """Exports for batches of any size, or for one where the network asks for that."""
    try:
        sk.export_packed(packed, path, inputs)
    except Exception:  # torch raises a dozen kinds
        sk.export_packed(packed, path, inputs, dynamic_batch=False)
    _check_equal(_call(sk.load_exported(path), inputs), _call(packed, inputs), 1e-4)
    return True


def _compile(packed: nn.Module, inputs: Any) -> bool:
    torch.compiler.reset()
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    _check_equal(_call(compiled, inputs), _call(packed, inputs), 1e-4)
    return True


def _package(packed: nn.Module, inputs: Any, path: Path) -> bool:
    package = sk.package_packed(packed, path, inputs, dynamic_batch=False)
    args, kwargs = as_arguments(inputs)
    _check_equal(package(*args, **kwargs), _call(packed, inputs), 1e-3)
    return True


def _call(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_arguments(inputs)
    with torch.set_grad_enabled(model.training):
        return model(*args, **kwargs)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of floats in a model's output, whatever holds them."""
    leaves = tree_leaves(plain(output))
    if hasattr(output, "to_tuple"):
        leaves = tree_leaves(output.to_tuple())
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _check_equal(found: Any, expected: Any, tolerance: float) -> None:
    """Raises AssertionError unless all tensors are equal, but for a share of the largest value."""
    pairs = list(zip(tensors_of(found), tensors_of(expected), strict=True))
    if not pairs:
        raise AssertionError("there is no tensor to compare")
    for y, wanted in pairs:
        largest = float(wanted[wanted.isfinite()].abs().max())
        torch.testing.assert_close(y, wanted, rtol=0, atol=tolerance * largest, equal_nan=True)
