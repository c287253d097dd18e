"""A note on each node of a packed graph whose words are the signs of one committed activation.

The note outlives the packing and goes with copies of the graph: verification compares these words with the activation.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

_KEY = "stompp_signs_of"


@dataclass(frozen=True)
class SignsOf:
    """Whose signs a node writes.

    Attributes:
        activation: qualified name in the model.
        images: the words are NHWC, not [..., K].
    """

    activation: str
    images: bool


def note_signs(node: fx.Node, activation: str, images: bool) -> None:
    """Notes that a node's words are the signs of an activation."""
    node.meta[_KEY] = SignsOf(activation, images)


def noted_signs(node: fx.Node) -> SignsOf | None:
    """Returns the note of a node, or None where it has none."""
    return node.meta.get(_KEY)
