"""The order in which a model runs its layers, and which activation's signs arrive at which layer.

Both are found by running the model on sample input, not by the order of registration. The runs leave no trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stompp_kernels.nn import BinaryLayer, BinaryMatmul, ProgressiveActivation
from stompp_kernels.progression.example_run import as_arguments, forwards, undisturbed
from stompp_kernels.progression.fast_paths import turn_off_fast_paths
from stompp_kernels.progression.gradient_paths import Gate, find_gates, set_gates
from stompp_kernels.progression.input_checks import check_inputs, is_single
from stompp_kernels.progression.parameter_use import ParameterUse, trace_parameter_use

_aten = torch.ops.aten

# Ops whose output holds nothing but values of their input: signs of +-1 pass through.
PRESERVING = {
    _aten.view,
    _aten._unsafe_view,
    _aten.reshape,
    _aten.permute,
    _aten.transpose,
    _aten.t,
    _aten.squeeze,
    _aten.unsqueeze,
    _aten.expand,
    _aten.slice,
    _aten.select,
    _aten.split,
    _aten.split_with_sizes,
    _aten.unbind,
    _aten.alias,
    _aten.detach,
    _aten.clone,
    _aten.repeat,
    _aten.roll,
    _aten.flip,
    _aten.index,
    _aten.index_select,
    _aten.gather,
    _aten.max_pool2d_with_indices,
    _aten.max_pool2d,
    _aten.adaptive_max_pool2d,
    _aten.amax,
    _aten.max,
    _aten.upsample_nearest1d,
    _aten.upsample_nearest2d,
    _aten._upsample_nearest_exact1d,
    _aten._upsample_nearest_exact2d,
    _aten.reflection_pad1d,
    _aten.reflection_pad2d,
    _aten.replication_pad1d,
    _aten.replication_pad2d,
    _aten.pixel_shuffle,
    _aten.pixel_unshuffle,
    _aten.channel_shuffle,
}

RELU_LIKE_OPS = {
    _aten.relu: "relu",
    _aten.relu_: "relu_",
    _aten.hardtanh: "hardtanh",
    _aten.hardtanh_: "hardtanh_",
    _aten.clamp: "clamp",
    _aten.clamp_: "clamp_",
    _aten.clamp_min: "clamp_min",
    _aten.clamp_min_: "clamp_min_",
    _aten.threshold: "threshold",
    _aten.threshold_: "threshold_",
}


# Ops that shift a tensor by another.
_SHIFTING = {_aten.add, _aten.add_, _aten.sub, _aten.sub_}


@dataclass(frozen=True)
class Source:
    """Tells where the values of a tensor come from.

    Attributes:
        producer: the name of the producer module whose output they are, or "".
        functional: the name of a functional activation that they come from instead, or "".
        place: the name of the module whose forward called the producer or the function.
        dropout: whether dropout lies in between, which keeps the values in eval mode only.
    """

    producer: str = ""
    functional: str = ""
    place: str = ""
    dropout: bool = False


_UNKNOWN = Source()


@dataclass(frozen=True, kw_only=True)
class Call(Source):
    """One call of a layer, and where its input comes from.

    Attributes:
        name: the layer's qualified name.
        nonnegative: the input had no negative entry, so that all its signs are +1; False if it was zero everywhere, as
            after an example input of zeros, which says nothing.
        shift: the name of a parameter that was added to the input last, a number for each of its channels (ReActNet's
            RSign), or "".
        single: the shape of an input that is one sample, without a batch dimension; else empty.
    """

    name: str
    nonnegative: bool = False
    shift: str = ""
    single: tuple[int, ...] = ()


class _Provenance(TorchDispatchMode):
    """Follows where a tensor's values come from.

    Args:
        running: names of the modules whose forward runs now, the innermost last.
        functions: ops whose results are followed too, with their names.
        parameters: name and parameter of the model.
        signs: follow signs alone, which products with what is positive have too.
    """

    def __init__(
        self, running: list[str], functions: Mapping[Any, str], parameters: Iterable[tuple[str, Tensor]], signs: bool
    ) -> None:
        super().__init__()
        self._running, self._functions, self._signs = running, functions, signs
        # Before it is added a parameter may be viewed in another shape.
        self._parameters = {_memory(parameter): (name, parameter.numel()) for name, parameter in parameters}
        self._shifts: dict[int, tuple[str, int]] = {}
        self._marks: dict[int, Source] = {}
        self._alive: list[Tensor] = []  # an id names a tensor only while the tensor lives

    def place(self) -> str:
        return self._running[-1] if self._running else ""

    def mark(self, tensor: Any, source: Source) -> None:
        if isinstance(tensor, Tensor):
            self._marks[id(tensor)] = source
            self._alive.append(tensor)

    def source(self, tensor: Any) -> Source:
        return self._marks.get(id(tensor), _UNKNOWN)

    def shift(self, tensor: Any, channels: int) -> str:
        """The name of the parameter whose addition gave a tensor of so many channels, if one number is for each."""
        name, numel = self._shifts.get(id(tensor), ("", 0))
        return name if numel == channels else ""

    def _scaled(self, packet: Any, a: Any, b: Any) -> Any:
        """Returns the side of a product or quotient whose signs the result has: the other one is positive."""
        if isinstance(b, Tensor) and self.source(b) is not _UNKNOWN and packet in (_aten.mul, _aten.mul_):
            a, b = b, a
        return a if bool((torch.as_tensor(b) > 0).all()) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operand = args[0] if args else None
        packet = func.overloadpacket
        if self._signs and packet in (_aten.mul, _aten.mul_, _aten.div, _aten.div_):
            source = self.source(self._scaled(packet, *args[:2]))
            if func._schema.is_mutable:
                self._forget(operand)
            self.mark(result, source)
            return result
        outputs = result if isinstance(result, (tuple, list)) else [result]
        if func._schema.is_mutable and isinstance(operand, Tensor):
            self._forget(operand)
        if packet in self._functions:
            self.mark(outputs[0], Source(functional=self._functions[packet], place=self.place()))
        elif packet in PRESERVING or (packet is _aten.constant_pad_nd and not any(args[1])):  # by nothing
            source, shift = self.source(operand), self._shifts.get(id(operand))
            for output in outputs:
                if source is not _UNKNOWN:
                    self.mark(output, source)
                if shift is not None:
                    self._note_shift(output, shift)
        elif packet in _SHIFTING:
            added = [self._parameters[_memory(x)] for x in args if _memory(x) in self._parameters]
            if len(added) == 1:
                self._note_shift(result, added[0])
        return result

    def _note_shift(self, tensor: Tensor, shift: tuple[str, int]) -> None:
        self._shifts[id(tensor)] = shift
        self._alive.append(tensor)

    def _forget(self, changed: Tensor) -> None:
        """Forgets where the values of a tensor came from that was changed in place."""
        for tensor in self._alive:
            if _memory(tensor) == _memory(changed):
                self._marks.pop(id(tensor), None)
                self._shifts.pop(id(tensor), None)


def _memory(x: Any) -> int | None:
    return x.untyped_storage()._cdata if isinstance(x, Tensor) else None


class _Dropouts(TorchFunctionMode):
    """Marks what passes dropout; in eval mode it calls no op that :class:`_Provenance` could see."""

    _FUNCTIONS = (
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
    )

    def __init__(self, provenance: _Provenance) -> None:
        super().__init__()
        self._provenance = provenance

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        source = self._provenance.source(result) if func in self._FUNCTIONS else _UNKNOWN
        if source is not _UNKNOWN:
            result = result.view_as(result)  # another object: its operand may reach other layers undropped
            self._provenance.mark(result, replace(source, dropout=True))
        return result


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns the first argument of a call, by position or by keyword; None where there is none."""
    return next(iter((*args, *kwargs.values())), None)


def _channels_in(layer: nn.Module) -> int:
    return getattr(layer, "in_channels", getattr(layer, "in_features", 0))


def _is_nonnegative(x: Any) -> bool:
    return isinstance(x, Tensor) and bool((x >= 0).all()) and bool((x > 0).any())


def trace_calls(
    model: nn.Module,
    example_inputs: Any,
    is_layer: Callable[[nn.Module], bool],
    is_producer: Callable[[nn.Module], bool],
    functions: Mapping[Any, str] = RELU_LIKE_OPS,
    signs: bool = False,
) -> tuple[list[Call], dict[str, int]]:
    """Runs the model in eval mode, and returns its layers' calls in order and how often each of its modules ran.

    Args:
        model: left as it was.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for the model.
        is_layer: modules whose calls are recorded.
        is_producer: modules whose output is followed to the layers.
        functions: ops of ``torch.ops.aten`` whose output is followed too, outside such modules, with their names.
        signs: follow signs alone, through products with what is positive too.

    Returns:
        One :class:`Call` for each call of a layer, and the number of runs by qualified name.

    Example:
        >>> from stompp_kernels.progression import trace_calls
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> calls, runs = trace_calls(
        ...     model,
        ...     torch.randn(1, 8),
        ...     is_layer=lambda module: isinstance(module, nn.Linear),
        ...     is_producer=lambda module: isinstance(module, nn.ReLU),
        ... )
        >>> [(call.name, call.producer) for call in calls]
        [('0', ''), ('2', '1')]
    """
    args, kwargs = as_arguments(example_inputs)
    calls: list[Call] = []
    runs: dict[str, int] = {}
    running: list[str] = []
    provenance = _Provenance(running, functions, model.named_parameters(), signs)

    def observe(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        layer, producer = is_layer(module), is_producer(module)

        def observed(*inputs: Any, **keywords: Any) -> Any:
            if layer:
                x = first_argument(inputs, keywords)
                shift = provenance.shift(x, _channels_in(module))
                source, nonnegative = vars(provenance.source(x)), _is_nonnegative(x)
                single = tuple(x.shape) if is_single(module, x) else ()
                calls.append(Call(**source, name=name, nonnegative=nonnegative, shift=shift, single=single))
            runs[name] = runs.get(name, 0) + 1
            running.append(name)
            try:
                output = forward(*inputs, **keywords)
            finally:
                running.pop()
            if producer:  # before the module's hooks, which may change the output
                provenance.mark(output, Source(producer=name, place=provenance.place()))
            return output

        return observed

    with forwards(model, observe), undisturbed(model), provenance, _Dropouts(provenance):
        model(*args, **kwargs)
    return calls, runs


def link(model: nn.Module, example_inputs: Any) -> list[tuple[str, BinaryLayer | BinaryMatmul]]:
    """Runs a model of progressive layers, and sets what they must know of each other.

    Sets every activation's mask shape, every binary layer's source activation, and the ``execution_index`` of layers
    and products of activations. A layer that runs several times has a source only if it is the same each time. Also
    keeps which parameters lie behind which progressive tensors (see :mod:`stompp_kernels.progression.gradient_paths`),
    for which the model runs with gradient, in eval and in training mode; where that fails it warns, and no parameter is
    ever taken for cut off. Modules of torch.nn that hold binary layers lose their fused kernels, which would read
    latent weights (see :mod:`stompp_kernels.progression.fast_paths`).
    ``sk.prepare`` calls it; call it yourself for a model built from progressive layers by hand, and again when the
    structure of the model changed.

    Args:
        example_inputs: as in :func:`trace_calls`; one sample is enough.

    Returns:
        The binary layers and products of activations in order of execution; one that did not run keeps an
        ``execution_index`` of None.

    Raises:
        ValueError: an activation runs at more than one place, or the weights of a layer are read by another module's
            forward, in a mode in which the layer itself does not run. The message names it. Where the layer runs too
            there is a warning.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), sk.nn.ProgressiveActivation(), sk.nn.BinaryLinear(8, 4))
        >>> [name for name, _ in sk.link(model, torch.randn(1, 8))]
        ['2']
        >>> model[2].activation is model[1]
        True
    """
    check_inputs("example_inputs", example_inputs, model)
    turn_off_fast_paths(model, lambda module: isinstance(module, BinaryLayer))
    _check_reads(model, trace_parameter_use(model, example_inputs))
    return connect(model, example_inputs)


def _check_reads(model: nn.Module, use: ParameterUse) -> None:
    for name, module in model.named_modules():
        found = use.read_elsewhere(name) if isinstance(module, BinaryLayer) else None
        if found is None:
            continue
        parameter, read = found
        what = f"layer {name!r}: {place(model, read.reader)} reads its latent {parameter} {read.mode}"
        if name not in use.called[read.mode]:
            raise ValueError(f"{what}, where the layer itself does not run; call the layer there")
        warnings.warn(f"{what}, and not the signs that the layer computes with", RuntimeWarning, stacklevel=3)


def place(model: nn.Module, name: str) -> str:
    """Names a module in words, by its name and type."""
    kind = type(model.get_submodule(name)).__name__
    return f"the forward of {name!r} of type {kind}" if name else f"the model's own forward ({kind})"


class SeveralShapesError(ValueError):
    """An activation that runs several times, with inputs of several shapes, for which one mask cannot serve.

    Attributes:
        activation: its name.
    """

    def __init__(self, activation: str, shapes: Sequence[tuple[int, ...]]) -> None:
        listed = " and ".join(str(list(shape)) for shape in shapes)
        super().__init__(f"activation {activation!r} runs on inputs of shapes {listed}, and would need a mask for each")
        self.activation = activation


def connect(model: nn.Module, example_inputs: Any) -> list[tuple[str, BinaryLayer | BinaryMatmul]]:
    """Does what :func:`link` does after its checks."""
    # First, so that what the model keeps of its last run holds no graph: such a tensor cannot be copied or pickled.
    gates, failure = _gates_or_failure(model, example_inputs)
    calls, runs, shapes = _trace_progressive(model, example_inputs)
    for name, found in shapes.items():
        count = runs[name]
        if count > runs[_caller(name, runs)]:
            raise ValueError(
                f"activation {name!r} runs at {count} places and would need a mask for each; "
                "give each place a module of its own"
            )
        if len(found) > 1:
            raise SeveralShapesError(name, found)
    if failure is not None:
        warnings.warn(
            "the model did not run with gradient in training mode on the example inputs, so what commitments cut off "
            f"will not be frozen; {type(failure).__name__}: {failure}",
            RuntimeWarning,
            stacklevel=3,
        )
    set_gates(model, gates)
    modules = dict(model.named_modules())
    for name, (shape,) in shapes.items():
        activation = modules[name]
        assert isinstance(activation, ProgressiveActivation)
        activation.set_mask_shape(shape)
        activation.name, activation.other_shape = name, None

    for module in modules.values():
        if isinstance(module, (BinaryLayer, BinaryMatmul)):
            module.execution_index = None
        if isinstance(module, BinaryLayer):
            module.set_source(None)
    ordered: list[tuple[str, BinaryLayer | BinaryMatmul]] = []
    for index, name in enumerate(dict.fromkeys(call.name for call in calls)):
        layer = modules[name]
        assert isinstance(layer, (BinaryLayer, BinaryMatmul))
        layer.execution_index = index
        ordered.append((name, layer))
        if isinstance(layer, BinaryMatmul):
            continue
        own = [call for call in calls if call.name == name]
        producers = {call.producer for call in own}
        source = modules[own[0].producer] if len(producers) == 1 and own[0].producer else None
        if layer.input_activation is None and isinstance(source, ProgressiveActivation):
            layer.set_source(source, any(call.dropout for call in own))
    return ordered


def _caller(name: str, runs: Mapping[str, int]) -> str:
    """The innermost module around another that runs: a list of modules does not."""
    while name:
        name = name.rpartition(".")[0]
        if name in runs:
            break
    return name


def _trace_progressive(
    model: nn.Module, example_inputs: Any
) -> tuple[list[Call], dict[str, int], dict[str, list[tuple[int, ...]]]]:
    """Finds the calls and runs of a model of progressive layers, and the shapes of a sample at each activation."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def observe(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        if not isinstance(module, ProgressiveActivation):
            return None

        def observed(*inputs: Any, **keywords: Any) -> Any:
            shape = tuple(first_argument(inputs, keywords).shape[1:])
            if shape not in shapes.setdefault(name, []):
                shapes[name].append(shape)
            return forward(*inputs, **keywords)

        return observed

    with forwards(model, observe):
        calls, runs = trace_calls(
            model,
            example_inputs,
            lambda module: isinstance(module, (BinaryLayer, BinaryMatmul)),
            lambda module: isinstance(module, ProgressiveActivation),
        )
    return calls, runs, shapes


def _gates_or_failure(model: nn.Module, example_inputs: Any) -> tuple[dict[str, Gate], Exception | None]:
    """Finds the gates, or none and why: a model may need more than example inputs to run in training mode."""
    try:
        return find_gates(model, example_inputs), None
    except Exception as failure:
        return {}, failure
