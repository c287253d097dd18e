"""What prepare did with each layer, and which layers it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stompp_kernels.table import table


@dataclass(frozen=True)
class LayerReport:
    """Tells what prepare did with one module.

    Attributes:
        name: qualified name of the module.
        kind: its type before.
        action: what was done with it: "binarized", "progressive" and "kept" are the most frequent.
        reason: why.
    """

    name: str
    kind: str
    action: str
    reason: str


@dataclass(frozen=True)
class PreparationReport:
    """Tells what prepare did, in a row for each module; ``print`` shows a table.

    The layers come first, in order of execution; then what multiplies by a weight of its own too but is no such layer;
    then products of activations; then the activations; then modules whose fused kernels were turned off.

    Attributes:
        rows: one for each module: its name, its type before, the action and the reason.

    Example:
        >>> _, report = sk.prepare(sk.models.MLP(widths=(32, 32)), torch.randn(2, 1, 8, 8))
        >>> for row in report.rows[:3]:
        ...     print(row.name, row.action, row.reason, sep=": ")
        1: kept: first layer
        4: binarized: input binarized by 3
        7: kept: last layer
    """

    rows: tuple[LayerReport, ...]

    def binarized(self) -> list[str]:
        """Lists the names of the binarized layers."""
        return [row.name for row in self.rows if row.action == "binarized"]

    def __str__(self) -> str:
        cells = [(row.name, row.kind, row.action, row.reason) for row in self.rows]
        return table(("layer", "was", "action", "why"), cells)


class RefusedLayers(ValueError):
    """Layers that cannot be binarized as the model stands.

    Attributes:
        reasons: by the layer's name; each ends with what to do about it.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"layer {name!r}: {reason}" for name, reason in reasons.items()))
        self.reasons = dict(reasons)


def refusal(refused: Mapping[str, str], keep: Sequence[str], binarized: Sequence[str]) -> ValueError:
    """The error that names every refused layer, and the ``keep`` with which the others are prepared."""
    patterns = [*keep, *(f"^{re.escape(name)}$" for name in refused)]
    count = "1 layer" if len(refused) == 1 else f"{len(refused)} layers"
    outcome = f"{len(binarized)} others are binarized then" if binarized else "nothing is left to binarize then"
    return ValueError(
        f"{count} cannot be binarized:\n{RefusedLayers(refused)}\n"
        f'on_refusal="keep" leaves these in float, and so does the following; {outcome}:\nkeep={patterns!r}'
    )
