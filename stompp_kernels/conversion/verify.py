"""A packed network against the float simulation of the model it was made from, layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from stompp_kernels.conversion.sign_notes import SignsOf, noted_signs
from stompp_kernels.nn import BinaryMatmul, PackedMatmul, ProgressiveActivation, float_simulation
from stompp_kernels.nn.bfloat16 import in_float32
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.nn.reshaped_convs import ReshapedLayer
from stompp_kernels.ops.reference import bits_from_words
from stompp_kernels.progression.copies import copy_module
from stompp_kernels.progression.example_run import as_arguments, plain, undisturbed
from stompp_kernels.progression.input_checks import running_on

# A share of the largest value: float modules see the same values in another memory format, which may group sums
# differently, and so do kernels with binary weights.
_TOLERANCE = 1e-4

# Results beside tensors; of others, such as transformers' caches, nothing but the type is compared.
_COMPARED = (bool, int, float, str)


def verify_packed(model: nn.Module, packed: nn.Module, inputs: Any) -> None:
    """Runs both on the inputs and compares, layer by layer, then what they return.

    Of a graph the signs after each committed activation and the outputs of products of activations are compared, of a
    model converted layer by layer the outputs of each layer or product, or the signs that a layer hands to the next.

    Args:
        model: the model that ``packed`` was made from, by ``sk.convert``.
        inputs: a tensor, tuple of positional or dict of keyword arguments.

    Raises:
        ValueError: something differs; names the first layer that does, or says that the outputs do.
    """
    args, kwargs = as_arguments(inputs)
    model = copy_module(model)  # hooks and flags are set on it, and other threads may run the original
    by_graph = isinstance(packed, fx.GraphModule)
    kept: dict[str, list[Tensor]] = {}
    if by_graph:
        kinds = ProgressiveActivation, BinaryMatmul
        names = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    else:
        names = {name for layer in _packed_layers(packed).values() for name in layer.replaces}
    with (
        # Copies: what reads an output may work in place.
        _outputs_of(model, names, lambda name, y: kept.setdefault(name, []).append(y.clone())),
        undisturbed(model),
        float_simulation(),
        running_on("verify", inputs),
    ):
        expected = model(*args, **kwargs)
    # What bfloat16 changes is not to hide a fault: verify_fast.py measures it.
    with in_float32(packed), undisturbed(packed):
        found = _run_graph(packed, kept, args, kwargs) if by_graph else _run_modules(packed, kept, args, kwargs)
    difference = _difference(found, expected)
    if difference:
        raise ValueError(f"the packed network's output differs from the model's {difference}")


def _packed_layers(packed: nn.Module) -> dict[str, PackedLayer | PackedMatmul]:
    kinds = PackedLayer, PackedMatmul
    return {name: module for name, module in packed.named_modules() if isinstance(module, kinds)}


@contextmanager
def _outputs_of(model: nn.Module, names: Collection[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls note(name, output) for each module of these names that runs."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: note(name, output)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(found: Any, expected: Any) -> str:
    """What differs in two results that hold tensors; empty if nothing does."""
    leaves, wanted_leaves = tree_leaves(plain(found)), tree_leaves(plain(expected))
    if len(leaves) != len(wanted_leaves):
        return f"in holding {len(leaves)} values instead of {len(wanted_leaves)}"
    for y, wanted in zip(leaves, wanted_leaves, strict=True):
        if isinstance(wanted, Tensor) and isinstance(y, Tensor):
            difference = _difference_of_tensors(y, wanted)
        elif type(y) is not type(wanted) or (isinstance(wanted, _COMPARED) and y != wanted):
            difference = f"in being {y!r} instead of {wanted!r}"
        else:
            difference = ""
        if difference:
            return difference
    return ""


def _difference_of_tensors(y: Tensor, wanted: Tensor) -> str:
    if y.shape != wanted.shape or y.dtype != wanted.dtype:
        return f"{list(y.shape)} of {y.dtype} instead of {list(wanted.shape)} of {wanted.dtype}"
    wide = torch.complex128 if wanted.is_complex() else torch.float64
    y, wanted = y.to(wide), wanted.to(wide)
    for name, values in (("the packed network", y), ("the model", wanted)):
        if bool(values.isnan().any()):
            return f"by NaN: {name} gives {int(values.isnan().sum())} of {values.numel()}"
    # Infinities, as of masked scores, are equal or not: what they differ by says nothing.
    infinite = y.isinf() | wanted.isinf()
    if not torch.equal(y[infinite], wanted[infinite]):
        return f"in {int((y[infinite] != wanted[infinite]).sum())} infinite values"
    if bool(infinite.all()):
        return ""
    error = float((y - wanted)[~infinite].abs().max())
    largest = float(wanted[~infinite].abs().max())
    return "" if error <= _TOLERANCE * largest else f"by up to {error:.3g} where values reach {largest:.3g}"


def _run_modules(
    packed: nn.Module, kept: Mapping[str, list[Tensor]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    layers = _packed_layers(packed)
    for name, module in packed.named_modules():
        if isinstance(module, ReshapedLayer):  # what it gives is what the float layer gives
            inner = next(inner for inner in layers if inner.startswith(f"{name}."))
            layers[name] = layers.pop(inner)

    def compare(name: str, output: Tensor) -> None:
        replaces = layers[name].replaces
        if replaces[-1] not in kept:
            raise ValueError(f"the model does not call {replaces[-1]}, which the packed network runs")
        layer = layers[name]
        has_thresholds = isinstance(layer, PackedLayer) and layer.has_thresholds
        compared = _different_signs if has_thresholds else _difference
        difference = _least(compared(output, one) for one in kept[replaces[-1]])
        if difference:
            raise ValueError(f"the packed network differs at {replaces[0]} {difference}")

    with _outputs_of(packed, layers, compare), torch.no_grad():
        return packed(*args, **kwargs)


def _difference_of_words(words: Tensor, expected: Tensor, signs: SignsOf) -> str:
    if signs.images and expected.dim() == 3:
        expected = expected.unsqueeze(2)  # sequences, which are images of height 1
    expected = expected.permute(0, 2, 3, 1) if signs.images else expected
    return _different_signs(words, expected) if words.shape[:-1] == expected.shape[:-1] else "in its shape"


def _least(differences: Iterable[str]) -> str:
    """Finds no difference from a module that runs several times if one run has none: which one it was is not known."""
    found = list(differences)
    return "" if "" in found else found[0]


def _different_signs(words: Tensor, expected: Tensor) -> str:
    """How many signs differ, if any, in words and floats whose channels come last."""
    different = int((bits_from_words(words, expected.shape[-1]) != (expected < 0)).sum())
    return f"in {different} of {expected.numel()} signs" if different else ""


def _run_graph(
    packed: fx.GraphModule, kept: Mapping[str, list[Tensor]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    comparison = _SignComparison(packed, kept)
    with torch.no_grad():
        result = comparison.run(*_values(packed.graph, args, kwargs))
    if comparison.difference:
        raise ValueError(f"the packed network differs at {comparison.difference}")
    return result


def _values(graph: fx.Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """One value for each placeholder, as an interpreter takes them."""
    kinds = inspect.Parameter
    parameters = [
        kinds(str(node.target), kinds.POSITIONAL_OR_KEYWORD, default=node.args[0] if node.args else kinds.empty)
        for node in graph.nodes
        if node.op == "placeholder"
    ]
    bound = inspect.Signature(parameters).bind(*args, **kwargs)
    bound.apply_defaults()
    return list(bound.arguments.values())


class _SignComparison(fx.Interpreter):
    def __init__(self, packed: fx.GraphModule, kept: Mapping[str, list[Tensor]]) -> None:
        super().__init__(packed)
        self.kept = kept
        self.difference = ""  # the first

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        signs = noted_signs(node)
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, PackedMatmul) and not self.difference:
            (name,) = module.replaces
            difference = _least(_difference(result, kept) for kept in self.kept[name])
            self.difference = f"{name} {difference}" if difference else ""
        elif signs is not None and not self.difference:
            difference = _least(_difference_of_words(result, kept, signs) for kept in self.kept[signs.activation])
            if difference:
                self.difference = f"{signs.activation} {difference}"
        return result
