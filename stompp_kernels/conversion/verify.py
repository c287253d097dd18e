"""A packed network against the float simulation of the model it was made from, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.nn import ProgressiveActivation, float_simulation
from stompp_kernels.ops.reference import bits_from_words
from stompp_kernels.progression.example_run import as_arguments, undisturbed

# Float modules see the same values in another memory format, which may group their sums differently.
_TOLERANCES = {"rtol": 1e-4, "atol": 1e-5}


def verify_packed(model: nn.Module, packed: fx.GraphModule, inputs: Any) -> None:
    """Runs both on the inputs and compares the signs after each committed activation, then what they return.

    Args:
        model: the model that ``packed`` was made from, by ``sk.convert``.
        inputs: a tensor, tuple of positional or dict of keyword arguments.

    Raises:
        ValueError: something differs; names the first activation whose signs do, or says that the outputs do.
    """
    args, kwargs = as_arguments(inputs)
    signs, expected = _simulate(model, args, kwargs)
    comparison = _Comparison(packed, signs)
    with torch.no_grad():
        found = comparison.run(*_in_order(packed, args, kwargs))
    if comparison.difference:
        raise ValueError(f"the packed network differs at {comparison.difference}")
    try:
        torch.testing.assert_close(found, expected, **_TOLERANCES)
    except AssertionError as error:
        raise ValueError(f"the packed network's output differs from the model's: {error}") from error


def _simulate(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """bool tensors of what is negative after each committed activation, and the output."""
    signs: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, ProgressiveActivation) and module.committed:

            def record(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                signs[name] = output < 0

            handles.append(module.register_forward_hook(record))
    try:
        with undisturbed(model), float_simulation():
            return signs, model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _in_order(packed: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments as an interpreter takes them: one a placeholder."""
    names = [(node.name, node.args) for node in packed.graph.nodes if node.op == "placeholder"][len(args) :]
    return [*args, *(kwargs[name] if name in kwargs else default[0] for name, default in names)]


class _Comparison(fx.Interpreter):
    def __init__(self, packed: fx.GraphModule, signs: dict[str, Tensor]) -> None:
        super().__init__(packed)
        self.signs = signs
        self.difference = ""  # the first

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        name, images = node.meta.get("signs_of", (None, False))
        if name in self.signs and not self.difference:
            expected = self.signs[name].permute(0, 2, 3, 1) if images else self.signs[name]
            different = int((bits_from_words(result, expected.shape[-1]) != expected).sum())
            if different:
                self.difference = f"{name}: {different} of {expected.numel()} signs"
        return result
