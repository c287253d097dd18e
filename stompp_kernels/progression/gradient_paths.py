"""Which parameters can get no gradient any more.

In the STE-free regime no gradient passes a committed tensor: it is a closed *gate*. A parameter whose paths to the
model's output all lead through closed gates is cut off. The paths are read from autograd's graph of a run in which
every gate is open, and kept by qualified name on the module that was run: so they are copied and pickled with it,
survive a change of devices and the replacement of parameters, and hold where it becomes part of a larger model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from stompp_kernels.nn.masked import Masked
from stompp_kernels.progression.example_run import as_arguments, undisturbed

_ATTRIBUTE = "_stompp_gradient_paths"


@dataclass(frozen=True)
class Gate:
    """A progressive tensor, and what lies directly behind it: without another gate in between.

    Attributes:
        parameters: names of the parameters behind it; not those that the output reaches past all gates.
        gates: names of the modules of the gates behind it.
        reaches_output: whether it lies directly behind the model's output.
    """

    parameters: frozenset[str]
    gates: frozenset[str]
    reaches_output: bool


@dataclass
class GradientPaths:
    """A model's gates by the name of their module, and the parameters that :func:`set_frozen` took gradients from."""

    gates: dict[str, Gate]
    frozen: set[str] = field(default_factory=set)

    def parameters(self) -> set[str]:
        """Returns the names of the parameters that lie behind gates only."""
        return set().union(*(gate.parameters for gate in self.gates.values()))

    def cut_off(self, closed: Callable[[str], bool]) -> set[str]:
        """Returns the names of the parameters that no gradient reaches while these gates are closed."""
        open_gates: set[str] = set()
        waiting = [name for name, gate in self.gates.items() if gate.reaches_output]
        while waiting:
            name = waiting.pop()
            if name not in open_gates and not closed(name):
                open_gates.add(name)
                waiting += self.gates[name].gates
        return self.parameters().difference(*(self.gates[name].parameters for name in open_gates))


def find_gates(model: nn.Module, example_inputs: Any) -> dict[str, Gate]:
    """Finds a model's gates: runs it with gradient, all progressive tensors soft, in eval and in training mode.

    Both runs count: auxiliary heads and random branches are there in training only. BatchNorm stays in eval mode, for
    in training it refuses a single value per channel. The runs leave no trace.

    Args:
        example_inputs: as in :func:`stompp_kernels.progression.trace_calls`.
    """
    runs = []
    with ExitStack() as stack:
        for context in (undisturbed(model), _soft(model), _learning(model), torch.inference_mode(False)):
            stack.enter_context(context)
        if "torch._dynamo" in sys.modules:  # a compiled part would hide its nodes
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # What was made in inference mode cannot be saved for backward.
        args, kwargs = tree_map_only(
            Tensor, lambda x: x.clone() if x.is_inference() else x, as_arguments(example_inputs)
        )
        for training in (False, True):
            model.train(training)
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
            runs.append(_trace(model, args, kwargs))
    return _union(runs)


@contextmanager
def _soft(model: nn.Module) -> Iterator[None]:
    stages = [(module, module.stage) for module in model.modules() if isinstance(module, Masked)]
    try:
        for masked, _ in stages:
            masked.committed = masked.started = False
        yield
    finally:
        for masked, stage in stages:
            masked.stage = stage


@contextmanager
def _learning(model: nn.Module) -> Iterator[None]:
    """Lets every parameter require grad inside."""
    others = [p for p in model.parameters() if not p.requires_grad and (p.is_floating_point() or p.is_complex())]
    try:
        for parameter in others:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(False)


# (parameters, gates) directly behind something.
_Reach = tuple[set[str], set[str]]


@torch.enable_grad()
def _trace(model: nn.Module, args: Any, kwargs: Any) -> dict[str | None, _Reach]:
    """Finds what lies directly behind each gate, and behind the output under the key None."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    # A node's Python object, and so its identity, lasts as long as something refers to it: the keys and `seen` do.
    gates: dict[Node, str] = {}

    def note(name: str, masked: Masked) -> Callable[[Tensor, bool], Tensor]:
        def apply_progressive(u: Tensor, batch_shared: bool) -> Tensor:
            y = type(masked).apply_progressive(masked, u, batch_shared)
            gates.update((node, name) for node in _nodes(y))
            return y

        return apply_progressive

    def reach(nodes: Iterable[Node]) -> _Reach:
        parameters: set[str] = set()
        behind: set[str] = set()
        waiting, seen = list(nodes), set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in gates:
                behind.add(gates[node])
            elif node.name() == "torch::autograd::AccumulateGrad":
                parameters.update(names.get(id(node.variable), ()))
            else:
                waiting += _next(node)
        return parameters, behind

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, Masked):
                # On the instance, at the very op: a module's output may be changed by hooks.
                module.__dict__["apply_progressive"] = note(name, module)
                stack.callback(module.__dict__.pop, "apply_progressive")
        output = model(*args, **kwargs)
    found: dict[str | None, _Reach] = {None: reach(_nodes(output))}
    for node, name in gates.items():
        parameters, behind = reach(_next(node))
        kept = found.setdefault(name, (set(), set()))  # a layer that runs twice has two nodes
        kept[0].update(parameters)
        kept[1].update(behind)
    return found


def _next(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


def _nodes(output: Any) -> list[Node]:
    return [get_gradient_edge(tensor).node for tensor in tensors_in(output) if tensor.requires_grad]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested containers, and in the attributes of objects that torch cannot look into."""
    return _tensors(value, set())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (nn.Module, type)) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _tensors(vars(leaf), seen)


def _union(runs: list[dict[str | None, _Reach]]) -> dict[str, Gate]:
    def over_runs(name: str | None) -> _Reach:
        reached = [run[name] for run in runs if name in run]
        return set().union(*(r[0] for r in reached)), set().union(*(r[1] for r in reached))

    direct_parameters, direct_gates = over_runs(None)
    gates = {}
    for name in dict.fromkeys(name for run in runs for name in run if name is not None):
        parameters, behind = over_runs(name)
        gates[name] = Gate(frozenset(parameters - direct_parameters), frozenset(behind), name in direct_gates)
    return gates


def set_gates(model: nn.Module, gates: dict[str, Gate]) -> None:
    """Keeps the gates on the model; what was kept on it or on a part of it is forgotten, frozen parameters freed."""
    set_frozen(model, {})
    for root, _ in _linked(model):
        del root.__dict__[_ATTRIBUTE]
    model.__dict__[_ATTRIBUTE] = GradientPaths(gates)


def _linked(model: nn.Module) -> list[tuple[nn.Module, GradientPaths]]:
    """Yields the modules that were run, each with its paths. A wrapper may show its module's attributes as its own."""
    return [(module, module.__dict__[_ATTRIBUTE]) for module in model.modules() if _ATTRIBUTE in module.__dict__]


def _owner(root: nn.Module, parameter: str) -> tuple[nn.Module, str] | None:
    """Finds the module that holds the parameter of this name, and its name there; None where there is none now."""
    path, _, name = parameter.rpartition(".")
    module = _submodule(root, path)
    return None if module is None or name not in module._parameters else (module, name)


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def without_gradient(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that can get no gradient any more, by name.

    A parameter in several places is one of them if it is cut off in each. A gate that is not there any more is open.
    """
    cut_off: set[tuple[nn.Module, str] | None] = set()
    for root, paths in _linked(model):

        def closed(gate: str, root: nn.Module = root) -> bool:
            masked = _submodule(root, gate)
            return isinstance(masked, Masked) and masked.cuts_gradient

        cut_off.update(_owner(root, name) for name in paths.cut_off(closed))
    alive = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if (module, name) not in cut_off
    }
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in alive}


def set_frozen(model: nn.Module, frozen: Mapping[str, nn.Parameter]) -> None:
    """Takes ``requires_grad`` from these parameters, and gives it back to others that it was taken from here.

    What the user froze stays as it is. The memory of it lies with the paths, so that it outlives a progression.
    """
    wanted = {id(parameter) for parameter in frozen.values()}
    for root, paths in _linked(model):
        for name in paths.parameters():
            place = _owner(root, name)
            if place is None:
                continue
            parameter = place[0]._parameters[place[1]]
            if id(parameter) in wanted:
                if parameter.requires_grad:
                    parameter.requires_grad_(False).grad = None
                    paths.frozen.add(name)
            elif name in paths.frozen:
                parameter.requires_grad_(True)
                paths.frozen.discard(name)
