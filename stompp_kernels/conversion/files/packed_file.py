"""Packed networks in files: one safetensors file each.

The tensors are the network's state dict, packed weights in the portable word order. The metadata hold the structure as
JSON: which module stands where and how the graph calls them (graph.py), or, of a model that keeps its own forward, its
class and config (modules.py). Nothing in a file is executed or unpickled: modules, functions and their arguments come
from closed lists, and a SHA-256 over structure and tensors refuses a file that was damaged; it does not tell who wrote
a file. docs/file-format.md describes the format.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, fx, nn

from stompp_kernels.conversion.files import container
from stompp_kernels.conversion.files.exported import exported_graph
from stompp_kernels.conversion.files.graph import graph_from_json, graph_to_json
from stompp_kernels.conversion.files.graph_checks import check_graph
from stompp_kernels.conversion.files.modules import is_packed_by_layer, modules_from_json, modules_to_json
from stompp_kernels.conversion.files.older_versions import upgraded
from stompp_kernels.conversion.files.outputs import with_plain_output
from stompp_kernels.conversion.input_notes import noted_inputs
from stompp_kernels.files import replacing
from stompp_kernels.nn.gives_floats import GivesFloats, cast_like_parameters, type_of_parameters
from stompp_kernels.ops.checks import check_module
from stompp_kernels.progression.input_checks import check_inputs


def save_packed(packed: nn.Module, path: str | os.PathLike[str], example_inputs: Any = None) -> int:
    """Writes a packed network, whole, to one file; an existing file is replaced only once the new one is complete.

    A network that was traced is saved as its graph. Of one that was converted layer by layer the file holds the name of
    its class and its config if it is a model of Hugging Face transformers or ``sk.models``' "bert", as class and config
    make it. What neither can hold is saved as torch.export reads its forward with example inputs: the file then gives
    the sizes that inputs must have, all but that of the batch, which may be any if torch.export finds so.

    Args:
        packed: made by ``sk.convert``.
        path: of the file, by convention ``*.safetensors``.
        example_inputs: a tensor, tuple or dict of inputs for torch.export. None: like those that ``sk.convert`` was
            given, as ``verify`` or ``example_inputs``.

    Returns:
        The file's size in bytes.

    Raises:
        TypeError: ``packed`` is not such a network, or ``example_inputs`` are no inputs of it.
        ValueError: it holds a module, function or argument that the format does not know; the message names it and
            says what to do. Or it was cast to several types.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> size = sk.save_packed(sk.convert(model), "net.safetensors")
        >>> size < 4 * sum(p.numel() for p in model.parameters())  # bytes of the float network
        True
    """
    check_module("packed", packed)
    expected = type_of_parameters(packed)
    cast = {str(m.dtype) for m in packed.modules() if isinstance(m, GivesFloats) and m.dtype is not expected}
    if cast:
        raise ValueError(f"packed must have the type of its parameters, {expected}, throughout, got {', '.join(cast)}")
    if not isinstance(packed, fx.GraphModule) and not is_packed_by_layer(packed):
        raise TypeError(f"packed must be a network made by sk.convert, got {type(packed).__name__}")
    if example_inputs is not None:
        check_inputs("example_inputs", example_inputs, packed)
    if isinstance(packed, fx.GraphModule):
        packed = with_plain_output(packed)
    try:
        structure, tensors = (graph_to_json if isinstance(packed, fx.GraphModule) else modules_to_json)(packed)
    except ValueError as error:
        structure, tensors = _exported_to_json(packed, example_inputs, error)
    content = container.to_bytes(structure, tensors)
    # Not save_file: it makes files that only their owner can read, whatever the umask.
    with replacing(path) as file:
        return file.write(content)


def _exported_to_json(packed: Any, example_inputs: Any, why: ValueError) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Structure and tensors of what torch.export reads, where the network cannot be saved as it stands and why."""
    inputs = noted_inputs(packed) if example_inputs is None else example_inputs
    if inputs is None:
        raise ValueError(
            f"{why}; or give save_packed example_inputs, with which torch.export reads the network"
        ) from why
    try:
        return graph_to_json(exported_graph(packed, inputs))
    except ValueError as error:
        raise ValueError(f"{why}; as torch.export reads it, it cannot be saved either: {error}") from why


def load_packed(path: str | os.PathLike[str], mmap: bool = False) -> nn.Module:
    """Reads a network that :func:`save_packed` wrote, and packs its weights for this machine.

    Args:
        path: of the file.
        mmap: leave float weights and constants in the file's pages, as ``torch.load(mmap=True)`` does: less memory, and
            shared by all processes that load the file. It must then not be written to while the network lives; to
            replace it by another, as :func:`save_packed` does, is safe.

    Returns:
        A torch.fx.GraphModule, or a model of the class that was converted layer by layer; in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: it holds a model of transformers, which is missing.
        ValueError: it is no packed network, is of another version, was cut short or was altered, or holds a structure
            that does not follow the format.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> packed, x = sk.convert(model), torch.randn(4, 1, 8, 8)
        >>> _ = sk.save_packed(packed, "net.safetensors")
        >>> torch.equal(sk.load_packed("net.safetensors")(x), packed(x))
        True
    """
    structure, tensors, version = container.read(path)
    try:
        if not isinstance(structure, dict):
            raise ValueError(f"a structure must be an object, got {type(structure).__name__}")
        if "model" in structure:
            packed = modules_from_json(structure, tensors, copy=not mmap)
        else:
            structure = structure if version >= 3 else upgraded(structure, version)
            check_graph(structure)
            packed = graph_from_json(structure, tensors, copy=not mmap)
    except (
        *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SyntaxError),
        AssertionError,
    ) as error:
        raise ValueError(f"{os.fspath(path)!r} holds a network that this package cannot build: {error}") from error
    cast_like_parameters(packed)
    return packed.eval().requires_grad_(False)
