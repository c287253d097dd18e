"""Checks of a packed network's arguments: nodes of its graph, where tracing fixed what a forward may ask about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.node import has_side_effect

Constant = None | bool | int | float | str


def require_constant(value: Any, name: str, constant: Constant) -> Any:
    """Raises ValueError unless an argument has the value that the network was converted for.

    Args:
        value: what the caller gave.
        name: of the argument.
        constant: None, a bool, number or string.
    """
    if isinstance(value, fx.Proxy):
        return _recorded(value, require_constant, name, constant)
    if not (value is constant or (type(value) is type(constant) and repr(value) == repr(constant))):
        raise ValueError(
            f"{name} must be {constant!r}, as the network was converted for it, got {_description(value)}; "
            "convert the model again with example_inputs that give another value"
        )
    return value


def require_given(value: Any, name: str) -> Any:
    """Raises ValueError where an argument is left out that the network was converted to be given."""
    if isinstance(value, fx.Proxy):
        return _recorded(value, require_given, name)
    if value is None:
        raise ValueError(
            f"{name} must be given, as the network was converted for a call that gives it, got None; "
            "convert the model again with example_inputs that leave it out"
        )
    return value


def require_left_out(value: Any, name: str) -> Any:
    """Raises ValueError where an argument is given whose default, which no graph can hold, was fixed."""
    if isinstance(value, fx.Proxy):
        return _recorded(value, require_left_out, name)
    if value is not None:
        raise ValueError(
            f"{name} must be left out, as the network was converted for its default, got {_description(value)}; "
            "convert the model again with example_inputs that give it"
        )
    return value


def require_items(value: Any, name: str, keys: Sequence[str] | int) -> Any:
    """Raises ValueError unless an argument is a list or tuple of this length, or a dict of these keys."""
    if isinstance(value, fx.Proxy):
        return _recorded(value, require_items, name, keys)
    if isinstance(keys, int):
        if not isinstance(value, (list, tuple)) or len(value) != keys:
            raise ValueError(f"{name} must be a list or tuple of {keys}, got {_description(value)}")
    elif not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"{name} must be a dict of {', '.join(map(repr, keys))}, got {_description(value)}")
    return value


def require_sizes(value: Any, name: str, sizes: Sequence[int | None]) -> Any:
    """Raises ValueError unless an argument is a tensor of these sizes; None allows any."""
    if isinstance(value, fx.Proxy):
        return _recorded(value, require_sizes, name, tuple(sizes))
    fits = isinstance(value, Tensor) and value.dim() == len(sizes)
    if not fits or any(size not in (None, own) for size, own in zip(sizes, value.shape, strict=True)):
        shown = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name} must be a tensor of shape [{shown}], got {_description(value)}")
    return value


CHECKS = (require_constant, require_given, require_left_out, require_items, require_sizes)
for _check in CHECKS:
    has_side_effect(_check)  # its result is read by no one, and yet it must stay in the graph


def what_is_required(graph: fx.Graph) -> tuple[str, ...]:
    """What the checks of a graph say of its arguments, one line each."""
    lines = []
    for node in graph.nodes:
        if node.op == "call_function" and node.target in CHECKS:
            name, *rest = node.args[1:]
            if node.target is require_constant:
                lines.append(f"{name} is {rest[0]!r}")
            elif node.target is require_items:
                keys = rest[0]
                what = f"a list of {keys}" if isinstance(keys, int) else f"a dict of {', '.join(map(repr, keys))}"
                lines.append(f"{name} is {what}")
            elif node.target is require_sizes:
                sizes = ", ".join("any" if size is None else str(size) for size in rest[0])
                lines.append(f"{name} has shape [{sizes}]")
            else:
                lines.append(f"{name} is {'given' if node.target is require_given else 'left out'}")
    return tuple(lines)


def _recorded(value: fx.Proxy, check: Any, *args: Any) -> Any:
    """The check as a node: a packed network is traced again where it is unpickled."""
    return value.tracer.create_proxy("call_function", check, (value, *args), {})


def _description(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(repr, value))}"
    return repr(value)
