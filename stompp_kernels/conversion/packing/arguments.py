"""Which arguments of a forward a traced network takes, and which it fixes.

What stands for an input while a forward is traced is not None, no number, no list. So what a forward may branch on is
given to it as it is: optional arguments have their default, unless example inputs give them, and every one that is
fixed so is checked in the graph, see checks.py. Where all are optional and there are no example inputs, the first is
an input that must be given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.checks import require_constant, require_given, require_items, require_left_out
from stompp_kernels.progression.example_run import as_arguments

_EMPTY = inspect.Parameter.empty
_CONSTANTS = (type(None), bool, int, float, str)


class TracedArguments:
    """Makes the placeholders of a model's forward, and what the forward is called with to be traced.

    Args:
        model: whose forward is traced.
        example_inputs: None, or a tensor, tuple or dict of inputs; of tensors only the place counts.
        fix_numbers: numbers that the example inputs give are constants too.

    Raises:
        TypeError: example inputs do not fit the forward, or one is of a type that a graph cannot hold.
    """

    def __init__(self, model: nn.Module, example_inputs: Any = None, fix_numbers: bool = False) -> None:
        self.parameters = inspect.signature(model.forward).parameters
        self._fix_numbers = fix_numbers
        self._given: Mapping[str, Any] = {}
        if example_inputs is not None:
            args, kwargs = as_arguments(example_inputs)
            try:
                self._given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"example_inputs must fit the model's forward: {error}") from error
        first = next(iter(self.parameters.values()), None)
        all_optional = not self._given and all(p.default is not _EMPTY for p in self.parameters.values())
        self._first = first.name if first is not None and all_optional and first.default is None else ""
        self._optional = False  # a placeholder with a default stands before

    @property
    def left_out(self) -> list[str]:
        """Optional arguments that are constants, because no example inputs give them."""
        names = [p.name for p in self.parameters.values() if p.default is not _EMPTY]
        return [name for name in names if name not in self._given and name != self._first]

    @property
    def numbers(self) -> list[str]:
        """Arguments that the example inputs give as numbers."""
        return [name for name, value in self._given.items() if type(value) in (int, float)]

    def make(self, placeholder: Callable[..., fx.Proxy]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for the forward; ``placeholder(name, *default)`` adds one to the graph."""
        self._placeholder = placeholder
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                values = self._given.get(name, ())
                args += [self._input(f"{name}_{index}", value) for index, value in enumerate(values)]
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update({key: self._input(key, value) for key, value in self._given.get(name, {}).items()})
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs[name] = self._argument(parameter)
            else:
                args.append(self._argument(parameter))
        return args, kwargs

    def _argument(self, parameter: inspect.Parameter) -> Any:
        name, default = parameter.name, parameter.default
        if name in self._given:
            return self._input(name, self._given[name], default)
        if default is _EMPTY or name == self._first:
            return self._required(name, default)
        self._constant(name, default)
        return default

    def _input(self, name: str, value: Any, default: Any = _EMPTY) -> Any:
        """An argument that the example inputs give."""
        if type(value) in (int, float) and not self._fix_numbers:
            has_default = type(default) in (int, float)
            return self._with_default(name, default) if has_default else self._required(name, default)
        if isinstance(value, _CONSTANTS):
            self._constant(name, value, default)
            return value
        return self._items(self._required(name, default), name, value)

    def _required(self, name: str, default: Any = _EMPTY) -> fx.Proxy:
        """An input that must be given; after one that need not, Python asks for a default."""
        if default is _EMPTY and not self._optional:
            return self._placeholder(name)
        proxy = self._with_default(name, None)
        require_given(proxy, name)
        return proxy

    def _constant(self, name: str, value: Any, default: Any = _EMPTY) -> None:
        """A placeholder that must be given ``value``; where no graph can hold it, it must be left out."""
        if not isinstance(value, _CONSTANTS):
            require_left_out(self._with_default(name, None), name)
            return
        default = value if default is _EMPTY else default
        require_constant(self._with_default(name, default if isinstance(default, _CONSTANTS) else None), name, value)

    def _with_default(self, name: str, default: Any) -> fx.Proxy:
        self._optional = True
        return self._placeholder(name, default)

    def _items(self, proxy: fx.Proxy, name: str, value: Any) -> Any:
        """The proxy of a tensor, or a list, tuple or dict of such."""
        if isinstance(value, Tensor):
            return proxy
        if type(value) in (list, tuple):
            require_items(proxy, name, len(value))
            return type(value)(self._item(proxy, name, index, item) for index, item in enumerate(value))
        if type(value) is dict and all(isinstance(key, str) for key in value):
            require_items(proxy, name, tuple(value))
            return {key: self._item(proxy, name, key, item) for key, item in value.items()}
        raise TypeError(
            "example_inputs must be tensors, None, numbers, strings, or lists, tuples and dicts of them, "
            f"got {type(value).__name__} for {name}"
        )

    def _item(self, proxy: fx.Proxy, name: str, key: int | str, value: Any) -> Any:
        item, path = proxy[key], f"{name}[{key!r}]"
        if not isinstance(value, _CONSTANTS):
            return self._items(item, path, value)
        require_constant(item, path, value)
        return value
