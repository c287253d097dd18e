"""The units of progression: a model's layers and products of activations, in order, with the activations they read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from stompp_kernels.nn import BinaryLayer, BinaryMatmul, ProgressiveActivation, Stage
from stompp_kernels.nn.masked import Masked
from stompp_kernels.ops.checks import check_module

Operation: TypeAlias = BinaryLayer | BinaryMatmul


@dataclass(frozen=True)
class Unit:
    """A binarized layer and the activation that feeds it, or a product of two activations: masks that advance together.

    Attributes:
        name: the qualified name of the layer or the product.
        layer: a layer, which holds the weight mask, or a product, which holds no weights.
        activations: hold the activation masks: of a layer one, or none for weights only or where another unit owns it;
            of a product its two.
        window: steps in which the unit is partly frozen; committed from ``window.stop`` on. Empty in vanilla STE.
        tensor_ids: of the random stream, for the weight mask and the activation mask, or for those of the activations.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> [(unit.name, unit.window) for unit in sk.StoMPP(model, total_steps=20).units]
        [('4', range(0, 9)), ('7', range(9, 18))]
    """

    name: str
    layer: Operation
    activations: tuple[ProgressiveActivation, ...]
    window: range
    tensor_ids: tuple[int, int]

    @property
    def activation(self) -> ProgressiveActivation | None:
        """The activation that feeds a layer; None where the unit owns none, and for a product, which has two."""
        return self.activations[0] if len(self.activations) == 1 else None

    @property
    def weights(self) -> BinaryLayer | None:
        """The layer that holds the unit's weights; None for a product."""
        return self.layer if isinstance(self.layer, BinaryLayer) else None

    @property
    def committed(self) -> bool:
        """Whether the layer, or both sides of the product, are binary."""
        return self.layer.stage is Stage.BINARY

    def masked(self) -> list[tuple[Masked, int]]:
        """Returns the unit's progressive tensors, each with its tensor id."""
        weights: tuple[Masked, ...] = () if self.weights is None else (self.weights,)
        return list(zip((*weights, *self.activations), self.tensor_ids, strict=False))

    def frozen_fraction(self) -> float:
        """Returns the fraction of frozen entries in the unit's masks."""
        masks = [masked for masked, _ in self.masked()]
        return sum(masked.frozen() for masked in masks) / sum(masked.mask_numel for masked in masks)


def linked_operations(model: nn.Module) -> list[tuple[str, Operation]]:
    """Returns a model's binary layers and products of activations with their names, in order of execution.

    Raises:
        ValueError: there is none, or one did not run on the example inputs.
    """
    check_module("model", model)
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, (BinaryLayer, BinaryMatmul))]
    if not found:
        raise ValueError(
            "model has no BinaryLinear or BinaryConv2d, and no BinaryMatmul: pass it through sk.prepare first"
        )
    unlinked = [name for name, operation in found if operation.execution_index is None]
    if 0 < len(unlinked) < len(found):
        raise ValueError(
            f"{kinds_of(operation for _, operation in found)} {unlinked} did not run on the example inputs, so their "
            "place in the order is unknown: take them out of the model, or call sk.link with example inputs that reach "
            "them"
        )
    if unlinked:
        raise ValueError(
            f"model was not run yet, so the order of {unlinked} is unknown: call sk.link(model, example_inputs)"
        )
    return sorted(found, key=lambda item: item[1].execution_index or 0)


def kinds_of(operations: Iterable[Operation]) -> str:
    """Returns "layers", or "layers and products" where these operations hold products of activations."""
    return "layers and products" if any(isinstance(o, BinaryMatmul) for o in operations) else "layers"


def check_binarize(operations: list[tuple[str, Operation]], binarize: str) -> None:
    """Checks that ``binarize`` is what the model was prepared for.

    Raises:
        ValueError: it is not.
    """
    fed = [name for name, o in operations if isinstance(o, BinaryMatmul) or o.activation is not None]
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


def make_units(operations: list[tuple[str, Operation]], steps: list[range]) -> list[Unit]:
    """Makes units in order of execution; an activation that feeds several layers belongs to the first."""
    units: list[Unit] = []
    owned: set[ProgressiveActivation] = set()
    for index, ((name, operation), window) in enumerate(zip(operations, steps, strict=True)):
        if isinstance(operation, BinaryMatmul):
            found: tuple[ProgressiveActivation, ...] = operation.activations
        else:
            found = () if operation.activation is None else (operation.activation,)
        own = tuple(activation for activation in found if activation not in owned)
        owned.update(own)
        units.append(Unit(name, operation, own, window, (2 * index, 2 * index + 1)))
    return units
