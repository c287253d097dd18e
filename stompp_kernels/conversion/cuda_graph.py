"""Packed networks as CUDA graphs: a call launches all kernels at once, and no step in Python is left.

A GPU runs the small layers of a packed network in less time than Python takes to ask for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stompp_kernels.conversion.files.devices import check_input_devices, devices_of, in_words, input_name
from stompp_kernels.conversion.files.export import check_packed
from stompp_kernels.progression.example_run import as_arguments
from stompp_kernels.progression.input_checks import check_inputs

_WARM_UP_CALLS = 3


def capture_packed(packed: nn.Module, example_inputs: Any) -> Callable[..., Any]:
    """Captures a packed network in a CUDA graph.

    Every call copies its inputs to those of the graph and runs the same kernels on them: sizes are fixed, and so is
    what the forward decided on the example. The graph reads the network's weights where they lie now: do not move the
    network afterwards.

    Args:
        packed: made by ``sk.convert`` or ``sk.load_packed``, on an NVIDIA GPU.
        example_inputs: a tensor, tuple or dict of inputs, on the same GPU.

    Returns:
        What is called as the network, with inputs like the example. Results are new tensors, without gradients.

    Raises:
        TypeError: ``packed`` is not such a network, or ``example_inputs`` are no inputs of it.
        ValueError: it is not on a GPU, or the inputs are not on the same one.
        RuntimeError: the forward does what no graph can hold, as reading a result on the CPU.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> sk.capture_packed(sk.convert(model), torch.randn(2, 1, 8, 8))
        Traceback (most recent call last):
        ValueError: packed must be on an NVIDIA GPU for a CUDA graph, and it is on cpu: move it with packed.to("cuda")
    """
    check_packed(packed)
    check_inputs("example_inputs", example_inputs, packed)
    device = _device_of(packed)
    args, kwargs = as_arguments(example_inputs)
    check_input_devices(device, args, kwargs)
    return CapturedNetwork(packed, args, kwargs)


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Captures a function without arguments; each call of the result runs it again and returns the same tensors.

    Raises:
        RuntimeError: the function does what no graph can hold.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what first calls set up must not be part of the graph
        for _ in range(_WARM_UP_CALLS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = run()
    except RuntimeError as error:
        raise RuntimeError(f"a CUDA graph cannot hold this network: {error}") from error

    def replay() -> Any:
        graph.replay()
        return result

    return replay


class CapturedNetwork:
    """A network in a CUDA graph, called as the network with inputs like those that it was captured with.

    Args:
        network: the network.
        args, kwargs: inputs; tensors among them may have other values in a call.
    """

    def __init__(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._network = network  # whose weights the graph reads
        with torch.no_grad():
            self._inputs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
            own_args, own_kwargs = self._inputs
            self._replay = captured(lambda: network(*own_args, **own_kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the graph on these inputs.

        Raises:
            TypeError: there are more or fewer inputs than were captured, or of other names.
            ValueError: an input's shape, dtype or device is another, or a value that is no tensor.
            RuntimeError: an input requires a gradient, which the graph would cut.
        """
        (leaves, structure), (own, captured_structure) = map(
            pytree.tree_flatten_with_path, ((args, kwargs), self._inputs)
        )
        if structure != captured_structure:
            raise TypeError(
                f"inputs must be those that were captured, {_names(own)}; got {_names(leaves) or 'no inputs'}"
            )
        for (path, value), (_, ours) in zip(leaves, own, strict=True):
            _check_alike(input_name(path), value, ours)
        with torch.no_grad():
            for (_, value), (_, ours) in zip(leaves, own, strict=True):
                if isinstance(ours, Tensor):
                    ours.copy_(value)
            return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self._replay())


def _device_of(packed: nn.Module) -> torch.device:
    devices = devices_of(packed)
    if len(devices) == 1 and devices[0].type == "cuda":
        return devices[0]
    raise ValueError(
        f"packed must be on an NVIDIA GPU for a CUDA graph, and it is on {in_words(devices)}: move it with "
        'packed.to("cuda")'
    )


def _check_alike(name: str, value: Any, captured_value: Any) -> None:
    if not isinstance(captured_value, Tensor):
        if isinstance(value, Tensor) or value != captured_value:
            raise ValueError(f"{name} must be {captured_value!r}, as it was captured, got {value!r}")
        return
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, as it was captured, got {type(value).__name__}")
    for what in ("shape", "dtype", "device"):
        theirs, ours = getattr(value, what), getattr(captured_value, what)
        if theirs != ours:
            texts = [str(list(found)) if what == "shape" else str(found) for found in (ours, theirs)]
            raise ValueError(f"{name} must have the {what} that was captured, {texts[0]}, got {texts[1]}")
    if value.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} requires a gradient, and a CUDA graph passes none: call it under torch.no_grad(), or with "
            "x.detach()"
        )


def _names(leaves: Any) -> str:
    return ", ".join(input_name(path) for path, _ in leaves)
