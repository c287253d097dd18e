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
from stompp_kernels.nn import (
    BinaryLayer,
    BinaryMatmul,
    PackBatchNorm,
    PackedMatmul,
    PackSigns,
    ProgressiveActivation,
    float_simulation,
)
from stompp_kernels.nn.bfloat16 import in_float32
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.nn.reshaped_convs import ReshapedLayer
from stompp_kernels.ops import pack_signs
from stompp_kernels.ops.reference import bits_from_words
from stompp_kernels.progression.copies import copy_module
from stompp_kernels.progression.example_run import as_arguments, plain, undisturbed
from stompp_kernels.progression.input_checks import running_on

# A share of the largest value: float modules see the same values in another memory format, which may group sums
# differently, and so do kernels with binary weights. A float that small may have either sign.
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
    read: dict[str, list[Tensor]] = {}  # of each kept output, what the module read
    if by_graph:
        kinds = ProgressiveActivation, BinaryMatmul
        names = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    else:
        names = {name for layer in _packed_layers(packed).values() for name in layer.replaces}

    def keep(name: str, x: Any, y: Tensor) -> None:
        kept.setdefault(name, []).append(y.clone())  # for what reads an output may work in place
        if isinstance(model.get_submodule(name), ProgressiveActivation):
            read.setdefault(name, []).append((x if isinstance(x, Tensor) else y).clone())

    with (
        _outputs_of(model, names, keep),
        undisturbed(model),
        float_simulation(),
        running_on("verify", inputs),
    ):
        expected = model(*args, **kwargs)
    # What bfloat16 changes is not to hide a fault: verify_fast.py measures it.
    with in_float32(packed), undisturbed(packed):
        if by_graph:
            assert isinstance(packed, fx.GraphModule)
            found = _run_graph(_SignComparison(packed, model, kept, read), args, kwargs)
        else:
            found = _run_modules(packed, kept, args, kwargs)
    difference = _difference(found, expected)
    if difference:
        raise ValueError(f"the packed network's output differs from the model's {difference}")


def _packed_layers(packed: nn.Module) -> dict[str, PackedLayer | PackedMatmul]:
    kinds = PackedLayer, PackedMatmul
    return {name: module for name, module in packed.named_modules() if isinstance(module, kinds)}


@contextmanager
def _outputs_of(model: nn.Module, names: Collection[str], note: Callable[[str, Any, Tensor], None]) -> Iterator[None]:
    """Calls note(name, first input, output) for each module of these names that runs."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: note(name, next(iter(inputs), None), output)

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

    def compare(name: str, _: Any, output: Tensor) -> None:
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


def _channels_last(x: Tensor, images: bool) -> Tensor:
    """What an activation read or gave, in the order of its words."""
    if images and x.dim() == 3:
        x = x.unsqueeze(2)  # sequences, which are images of height 1
    return x.permute(0, 2, 3, 1) if images else x


def _difference_of_words(words: Tensor, expected: Tensor, signs: SignsOf) -> str:
    expected = _channels_last(expected, signs.images)
    return _different_signs(words, expected) if words.shape[:-1] == expected.shape[:-1] else "in its shape"


def _settled(words: Tensor, read: Iterable[Tensor], kept: Iterable[Tensor], images: bool) -> Tensor | None:
    """The words that the model's activation gives, if signs differ where it read nothing but zeros to rounding."""
    for x, y in zip(read, kept, strict=True):
        x, y = _channels_last(x, images), _channels_last(y, images)
        if words.shape[:-1] != y.shape[:-1] or x.shape != y.shape:
            continue
        wrong = bits_from_words(words, y.shape[-1]) != (y < 0)
        largest = x[x.isfinite()].abs().max() if bool(x.isfinite().any()) else 0.0
        if not bool((wrong & ~(x.abs() <= _TOLERANCE * largest)).any()):
            return pack_signs(y.contiguous())
    return None


def _least(differences: Iterable[str]) -> str:
    """Finds no difference from a module that runs several times if one run has none: which one it was is not known."""
    found = list(differences)
    return "" if "" in found else found[0]


def _different_signs(words: Tensor, expected: Tensor) -> str:
    """How many signs differ, if any, in words and floats whose channels come last."""
    different = int((bits_from_words(words, expected.shape[-1]) != (expected < 0)).sum())
    return f"in {different} of {expected.numel()} signs" if different else ""


def _run_graph(comparison: _SignComparison, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        result = comparison.run(*_values(comparison.module.graph, args, kwargs))
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
    """Runs a packed graph, and goes on with the model's signs where its own differ by rounding.

    Attributes:
        difference: the first.
    """

    def __init__(
        self,
        packed: fx.GraphModule,
        model: nn.Module,
        kept: Mapping[str, list[Tensor]],
        read: Mapping[str, list[Tensor]],
    ) -> None:
        super().__init__(packed)
        self.kept, self.read = kept, read
        self.difference = ""
        names = {module: name for name, module in model.named_modules() if isinstance(module, ProgressiveActivation)}
        self.own = {  # the activations of layers that binarize their own inputs
            name: names[layer.input_activation]
            for name, layer in model.named_modules()
            if isinstance(layer, BinaryLayer) and layer.input_activation in names
        }

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if self.difference:
            return result
        signs = noted_signs(node)
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, PackedMatmul):
            (name,) = module.replaces
            difference = _least(_difference(result, kept) for kept in self.kept[name])
            self.difference = f"{name} {difference}" if difference else ""
        elif signs is not None:
            on_integers = isinstance(module, PackedLayer) and module.has_thresholds
            return self._compared(result, signs, on_integers)
        elif isinstance(module, (PackSigns, PackBatchNorm)):
            found = (self.own[layer] for layer in self._layers_of(node) if layer in self.own)
            name = next(found, "")
            settled = _settled(result, self.read.get(name, ()), self.kept.get(name, ()), module.images)
            return result if settled is None else settled
        return result

    def _compared(self, words: Tensor, signs: SignsOf, on_integers: bool) -> Tensor:
        """The words of an activation, or the model's."""
        name = signs.activation
        difference = _least(_difference_of_words(words, kept, signs) for kept in self.kept[name])
        if difference and not on_integers:
            settled = _settled(words, self.read[name], self.kept[name], signs.images)
            if settled is not None:
                return settled
        self.difference = f"{name} {difference}" if difference else ""
        return words

    def _layers_of(self, node: fx.Node) -> Iterator[str]:
        """The names of the model's layers that read a node's words."""
        for user in node.users:
            module = self.module.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, PackedLayer):
                yield module.replaces[0]
