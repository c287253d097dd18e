"""What a forward decides on values of its own tensors, said to torch.export, which knows of tensors no values.

A quantizer of vectors asks, for example, whether a buffer says that it is initialized. Where all that such a question
looks at are parameters, buffers and constants, the answer is a constant of the network: a run on example inputs notes
it, and torch.export is given it. What depends on an input's values, on a size that may vary, on chance or on a tensor
that the forward changes is left to torch.export.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from stompp_kernels.progression.example_run import forwards

_QUESTIONS = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "equal", "allclose", "is_nonzero")
_BY_CHANCE = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli", "multinomial", "normal")
_CHANGES = ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__")
_IN_PLACE = ("__setitem__", *_CHANGES, "__iand__", "__ior__", "__ixor__")
_UNKNOWN = object()
_HINTS: dict[type[nn.Module], str] = {nn.TransformerEncoder: "is_causal", nn.TransformerDecoder: "tgt_is_causal"}


@contextmanager
def decided(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], stand_in: nn.Module | None = None
) -> Iterator[None]:
    """Inside, a forward that torch.export runs gets the answers that are constants of the network.

    Args:
        model, args, kwargs: a model and inputs that it is run with, to note the answers.
        stand_in: a copy of the model that torch.export reads; None: the model itself.
    """
    for masks in (nullcontext, _masks_as_given):
        asked = _Answers(model, (args, kwargs))
        with torch.no_grad(), masks(model), asked:
            model(*args, **kwargs)
        if all(answer is not _UNKNOWN for _, answer in asked.found):
            break
    none_is_known = all(answer is _UNKNOWN for _, answer in asked.found)
    with masks(stand_in or model), nullcontext() if none_is_known else _Replies(asked.found):
        yield


@contextmanager
def _masks_as_given(model: nn.Module) -> Iterator[None]:
    """Inside, torch's transformers apply masks as they are, and do not ask for causal ones, which it has a kernel for.

    That gives the same but for rounding, and a mask may then be an input.
    """

    def wrap(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        hint = next((hint for kind, hint in _HINTS.items() if isinstance(module, kind)), None)
        if hint is None:
            return None
        parameters = inspect.signature(forward)

        def without_hint(*args: Any, **kwargs: Any) -> Any:
            bound = parameters.bind(*args, **kwargs)
            if bound.arguments.get(hint) is None:
                bound.arguments[hint] = False
            return forward(*bound.args, **bound.kwargs)

        return without_hint

    with forwards(model, wrap):
        yield


class _Followed(TorchFunctionMode):
    """Follows which tensors come from others, and what they are views of."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[int, Tensor] = {}  # kept, or another could get its id

    def follow(self, values: Iterable[Any]) -> None:
        self._tensors.update((id(t), t) for t in _with_bases(values))

    def is_followed(self, value: Any) -> bool:
        return any(id(t) in self._tensors for t in _with_bases([value]))

    def pass_on(self, name: str, args: Any, result: Any) -> None:
        self.follow(tree_leaves(result))
        if name == "__setitem__":
            self.follow(args[:1])


class _Answers(_Followed):
    """Notes each question to a tensor's values in order, with the answer unless that may be another next time."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.found: list[tuple[str, Any]] = []
        self.follow(tree_leaves(inputs))
        self._own = {id(t) for t in _with_bases([*model.parameters(), *model.buffers()])}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        given = tree_leaves((args, kwargs))
        result = func(*args, **kwargs)
        depends = name.rstrip("_") in _BY_CHANCE or any(map(self.is_followed, given)) or self._changes(name, args)
        if name in _QUESTIONS:
            self.found.append((name, _UNKNOWN if depends else result))
        elif depends:
            self.pass_on(name, args, result)
        return result

    def _changes(self, name: str, args: Any) -> bool:
        """Whether a function in place changes one of the network's own tensors."""
        in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        return in_place and any(id(t) in self._own for t in _with_bases(args[:1]))


class _Replies(_Followed):
    """Answers questions as noted, in order; torch.export may run the forward several times."""

    def __init__(self, found: list[tuple[str, Any]]) -> None:
        super().__init__()
        self._found, self._next = found, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        varies = any(_may_vary(value) or self.is_followed(value) for value in tree_leaves((args, kwargs)))
        if name in _QUESTIONS:
            asked, answer = self._found[self._next % len(self._found)]
            self._next += 1
            if asked == name and answer is not _UNKNOWN and not varies:
                return answer
        result = func(*args, **kwargs)
        if varies and name not in _QUESTIONS:
            self.pass_on(name, args, result)
        return result


def _with_bases(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values, and those that they are views of."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
            if value._base is not None:
                yield value._base


def _may_vary(value: Any) -> bool:
    """Whether a number, or a tensor's size, is not known to torch.export."""
    if isinstance(value, Tensor):
        return any(map(_may_vary, value.shape))
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
