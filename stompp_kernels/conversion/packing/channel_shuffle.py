"""Channel shuffles that a forward writes as reshapes become torch's function, which is one call and one pass.

It keeps images channels_last, as packed convolutions write them, where the reshapes put the channels first.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from stompp_kernels.conversion.packing.graph_state import GraphState

_RESHAPES = (torch.reshape, "reshape", "view")
_SWAPS = {
    **dict.fromkeys((torch.transpose, "transpose"), ((1, 2), (2, 1))),
    **dict.fromkeys((torch.permute, "permute"), ((0, 2, 1, 3, 4),)),
}


def shuffle_by_function(state: GraphState) -> None:
    """Makes one call of [B, C, H, W] -> [B, groups, C // groups, H, W], the middle ones swapped -> [B, C, H, W]."""
    for node in list(state.graph.nodes):
        swapped = _reshaped(node)
        if isinstance(swapped, fx.Node) and swapped.target == "contiguous" and len(swapped.args) == 1:
            swapped = swapped.args[0]
        divided = _swapped(swapped)
        images = _reshaped(divided)
        sizes = _numbers(divided)
        if not isinstance(images, fx.Node) or len(sizes) != 5 or len(_numbers(node)) != 4:
            continue
        groups = sizes[1]
        own = [(values[place], dim) for values in (sizes, _numbers(node)) for place, dim in ((0, 0), (-2, 2), (-1, 3))]
        if _is_quotient(sizes[2], images, groups) and all(_is_size(value, images, dim) for value, dim in own):
            with state.graph.inserting_before(node):
                shuffled = state.graph.call_function(torch.channel_shuffle, (images, groups))
            node.replace_all_uses_with(shuffled)
            state.graph.erase_node(node)


def _reshaped(node: Any) -> Any:
    """What a node reshapes; None where it does something else."""
    return node.args[0] if isinstance(node, fx.Node) and node.target in _RESHAPES and not node.kwargs else None


def _swapped(node: Any) -> Any:
    """What has its second and third of five dimensions swapped by a node; None where it does something else."""
    swaps = isinstance(node, fx.Node) and not node.kwargs and _numbers(node) in _SWAPS.get(node.target, ())
    return node.args[0] if swaps else None


def _numbers(node: Any) -> tuple[Any, ...]:
    """The arguments of a node behind its first, one by one or as one tuple."""
    others: tuple[Any, ...] = node.args[1:] if isinstance(node, fx.Node) else ()
    return tuple(others[0]) if len(others) == 1 and isinstance(others[0], (tuple, list)) else tuple(others)


def _is_quotient(value: Any, images: fx.Node, groups: Any) -> bool:
    """Whether an argument is the number of channels divided by the number of groups, which is fixed."""
    divides = type(groups) is int and isinstance(value, fx.Node) and value.target is operator.floordiv
    return divides and value.args[1] == groups and _is_size(value.args[0], images, 1)


def _is_size(value: Any, images: fx.Node, dim: int) -> bool:
    """Whether an argument is the size of a dimension of the images, which the forward asks for."""
    if not isinstance(value, fx.Node):
        return False
    if value.target == "size":
        return value.args == (images, dim)
    sizes = value.args[0] if value.target is operator.getitem and value.args[1] == dim else None
    if not isinstance(sizes, fx.Node):
        return False
    return (sizes.target, sizes.args) in (("size", (images,)), (getattr, (images, "shape")))
