"""A module of its own for each place where a model applies a ReLU.

A mask belongs to one place, so an activation that runs at several, or that is a function, cannot be replaced as it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from stompp_kernels.conversion.prepare.report import RefusedLayers
from stompp_kernels.conversion.prepare.split_forward import RELU_LIKE as RELU_LIKE
from stompp_kernels.conversion.prepare.split_forward import module_of_function, split_block
from stompp_kernels.progression.example_run import as_arguments, forwards, undisturbed
from stompp_kernels.progression.execution import Call
from stompp_kernels.progression.gradient_paths import tensors_in


def unshare_activations(model: nn.Module, calls: Iterable[Call]) -> bool:
    """Gives the activations that feed these calls a copy for each further name they are registered under.

    Returns:
        Whether there was such a name.
    """
    wanted = {model.get_submodule(call.producer) for call in calls if call.producer}
    seen: set[nn.Module] = set()
    further: list[tuple[nn.Module, str]] = []
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child in seen:
                further.append((parent, name))
            elif child in wanted:
                seen.add(child)
    for parent, name in further:
        setattr(parent, name, copy.deepcopy(parent.get_submodule(name)))
    return bool(further)


def name_functions(model: nn.Module, calls: Iterable[Call], functions: Mapping[Any, Any] | None = None) -> bool:
    """Makes modules of the functions that modules keep as an attribute and feed these calls from.

    So does ``activation`` of ``nn.TransformerEncoderLayer``, whose forward torch.fx cannot follow.

    Args:
        functions: as of :func:`split_block`.

    Returns:
        Whether there was such a function.
    """
    changed = False
    for place in {call.place: None for call in calls if call.functional}:
        block = model.get_submodule(place)
        for name, value in list(vars(block).items()):
            partial = isinstance(value, functools.partial) and not value.args
            function, keywords = (value.func, value.keywords) if partial else (value, {})
            module = module_of_function(function, (), keywords, functions)
            if module is not None:
                setattr(block, name, module.train(block.training))
                changed = True
    return changed


def split_activations(model: nn.Module, calls: Iterable[Call], runs: Mapping[str, int], example_inputs: Any) -> bool:
    """Gives every place an activation of its own where a call's input comes from a shared or functional one.

    It changes those modules whose forward feeds one of these calls from an activation that runs several times, or from
    a functional one; see :func:`split_block`.

    Args:
        model: changed in place.
        calls, runs: as from :func:`stompp_kernels.progression.trace_calls`.
        example_inputs: as there.

    Returns:
        Whether a module was changed.

    Raises:
        RefusedLayers: a forward cannot be split; the message names each layer, its activation, the module and the
            reason.
    """
    blocks: dict[str, list[Call]] = {}
    for call in calls:
        if call.functional or (call.producer and runs[call.producer] > runs.get(call.place, 1)):
            blocks.setdefault(call.place, []).append(call)
    if not blocks:
        return False
    before, constants = example_run(model, blocks, example_inputs)
    refused: dict[str, str] = {}
    for place, fed in blocks.items():
        try:
            split_block(model.get_submodule(place), constants[place])
        except ValueError as error:
            block = f"{place!r} of type {type(model.get_submodule(place)).__name__}" if place else "the model itself"
            for call in fed:
                what = f"a functional {call.functional}" if call.functional else f"activation {call.producer!r}"
                refused[call.name] = (
                    f"its input comes from {what}, which would need a module for each place where it runs, and "
                    f"{block}, whose forward calls it, cannot be changed so: {error}; use an nn.ReLU module for each "
                    "place, or keep the layer in float with keep=..."
                )
    if refused:
        raise RefusedLayers(refused)
    check_outputs(model, blocks, before, example_inputs)
    return True


def check_outputs(
    model: nn.Module, blocks: Mapping[str, list[Call]], before: list[Tensor], example_inputs: Any
) -> None:
    """Checks that the model still returns this, for torch.fx does not see all that Python does."""
    try:
        after, _ = example_run(model, (), example_inputs)
        if len(before) != len(after) or not all(map(_equal, before, after)):
            raise ValueError("the outputs differ")
    except Exception as error:
        reason = (
            f"torch.fx misread the forward of one of {list(blocks)}, where activations need a module for each place "
            f"where they run: {error}; use nn.ReLU modules, each at one place, or keep the layer in float with keep=..."
        )
        raise RefusedLayers({call.name: reason for fed in blocks.values() for call in fed}) from error


def example_run(
    model: nn.Module, places: Iterable[str], example_inputs: Any
) -> tuple[list[Tensor], dict[str, dict[str, Any]]]:
    """The tensors that the model returns in eval mode, and by place those arguments there that are None, bool or str.

    These are what a forward branches on.
    """
    args, kwargs = as_arguments(example_inputs)
    constants: dict[str, dict[str, Any]] = {}
    wanted = set(places)

    def observe(place: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        def observed(*inputs: Any, **keywords: Any) -> Any:
            bound = inspect.signature(forward).bind(*inputs, **keywords)
            bound.apply_defaults()
            constants[place] = {k: v for k, v in bound.arguments.items() if v is None or isinstance(v, (bool, str))}
            return forward(*inputs, **keywords)

        return observed if place in wanted else None

    with forwards(model, observe), undisturbed(model):
        return [tensor.clone() for tensor in tensors_in(model(*args, **kwargs))], constants


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
