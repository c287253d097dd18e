"""The units of progression: which layers a model has, in which order, and which activation feeds each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stompp_kernels.nn import BinaryLayer, ProgressiveActivation
from stompp_kernels.nn.masked import Masked
from stompp_kernels.ops.checks import check_module


@dataclass(frozen=True)
class Unit:
    """A binarized layer and the activation that feeds it: their masks advance together.

    Attributes:
        name: the layer's qualified name.
        layer: holds the weight mask.
        activation: holds the activation mask; None for weights only, or where another unit owns it.
        window: steps in which the unit is partly frozen; committed from ``window.stop`` on. Empty in vanilla STE.
        tensor_ids: of the random stream, for the weight mask and the activation mask.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> [(unit.name, unit.window) for unit in sk.StoMPP(model, total_steps=20).units]
        [('4', range(0, 9)), ('7', range(9, 18))]
    """

    name: str
    layer: BinaryLayer
    activation: ProgressiveActivation | None
    window: range
    tensor_ids: tuple[int, int]

    def masked(self) -> list[tuple[Masked, int]]:
        """Returns the unit's progressive tensors, each with its tensor id."""
        pairs: list[tuple[Masked, int]] = [(self.layer, self.tensor_ids[0])]
        if self.activation is not None:
            pairs.append((self.activation, self.tensor_ids[1]))
        return pairs

    def frozen_fraction(self) -> float:
        """Returns the fraction of frozen entries in the unit's masks."""
        masks = [masked for masked, _ in self.masked()]
        return sum(masked.frozen() for masked in masks) / sum(masked.mask_numel for masked in masks)


def linked_layers(model: nn.Module) -> list[tuple[str, BinaryLayer]]:
    """Returns a model's binary layers with their names, in order of execution.

    Raises:
        ValueError: there is none, or one did not run on the example inputs.
    """
    check_module("model", model)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BinaryLayer)]
    if not layers:
        raise ValueError("model has no BinaryLinear or BinaryConv2d: pass it through sk.prepare first")
    unlinked = [name for name, layer in layers if layer.execution_index is None]
    if 0 < len(unlinked) < len(layers):
        raise ValueError(
            f"layers {unlinked} did not run on the example inputs, so their place in the order is unknown: take them "
            "out of the model, or call sk.link with example inputs that reach them"
        )
    if unlinked:
        raise ValueError(
            f"model was not run yet, so the order of {unlinked} is unknown: call sk.link(model, example_inputs)"
        )
    return sorted(layers, key=lambda item: item[1].execution_index or 0)


def check_binarize(layers: list[tuple[str, BinaryLayer]], binarize: str) -> None:
    """Checks that ``binarize`` is what the model was prepared for.

    Raises:
        ValueError: it is not.
    """
    fed = [name for name, layer in layers if layer.activation is not None]
    if binarize == "both" and not fed:
        raise ValueError(
            "binarize must be 'weights' for this model, got 'both': no progressive activation feeds a binary layer "
            "(presumably sk.prepare was given binarize='weights')"
        )
    if binarize == "weights" and fed:
        raise ValueError(
            f"binarize must be 'both' for this model, got 'weights': progressive activations feed {fed} and would "
            "stay clipped; give sk.prepare binarize='weights' too"
        )


def make_units(layers: list[tuple[str, BinaryLayer]], steps: list[range]) -> list[Unit]:
    """Makes units in order of execution; an activation that feeds several layers belongs to the first."""
    units: list[Unit] = []
    owned: set[ProgressiveActivation] = set()
    for index, ((name, layer), window) in enumerate(zip(layers, steps, strict=True)):
        activation = None if layer.activation in owned else layer.activation
        if activation is not None:
            owned.add(activation)
        units.append(Unit(name, layer, activation, window, (2 * index, 2 * index + 1)))
    return units
