"""Packed networks as PyTorch's own files: a program of torch.export, or a package that AOTInductor compiled.

The program calls torch.ops.stompp on weights that stand in it as constants, in the order that one implementation's
kernels read. It runs wherever torch and this package with its compiled library are installed; where another
implementation runs, the ops pack such weights again at every call, and load_exported does it once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from stompp_kernels import native
from stompp_kernels.conversion.files.decisions import decided
from stompp_kernels.conversion.files.devices import check_input_devices, devices_of, in_words
from stompp_kernels.conversion.files.outputs import plain_results, with_plain_output
from stompp_kernels.files import replacing
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.ops import BinaryWeight, PackedWeight
from stompp_kernels.progression.example_run import as_arguments
from stompp_kernels.progression.input_checks import check_inputs
from stompp_kernels.torch_release import PACKAGES, torch_is_before, torch_version


def export_packed(
    packed: nn.Module, path: str | os.PathLike[str], example_inputs: Any, dynamic_batch: bool = True
) -> ExportedProgram:
    """Exports a packed network and writes it, whole, to one file; an existing one is replaced when that is complete.

    The weights are written as they lie: for the implementation that was active when ``packed`` was converted or loaded.
    For a weaker machine: ``with sk.use_implementation("avx2"): packed = sk.load_packed(...)``.

    Args:
        packed: made by ``sk.convert`` or ``sk.load_packed``; left as it is.
        path: of the file, by convention ``*.pt2``. ``torch.export.load`` reads it too, after ``import stompp_kernels``.
        example_inputs: a tensor, tuple or dict of inputs; their shapes and dtypes count, not their values.
        dynamic_batch: dimension 0 of every input is a batch of any size, the same for all; else sizes are fixed.

    Returns:
        The program.

    Raises:
        TypeError: ``packed`` is not such a network, or ``example_inputs`` are no inputs of it.
        ValueError: there is no batch dimension, or the network takes one batch size only.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> program = sk.export_packed(sk.convert(model), "net.pt2", torch.randn(2, 1, 8, 8))
        >>> program.module()(torch.randn(5, 1, 8, 8)).shape  # a batch of another size
        torch.Size([5, 10])
    """
    program = _program(packed, example_inputs, dynamic_batch)
    with replacing(path) as file:
        torch.export.save(program, file)
    return program


def package_packed(
    packed: nn.Module, path: str | os.PathLike[str], example_inputs: Any, dynamic_batch: bool = True
) -> Callable[..., Any]:
    """Compiles a packed network by AOTInductor and writes it, whole, to one file; an existing one is replaced then.

    No call takes a step in Python: the fastest form of a network, the more so the smaller its layers are. A C++ program
    can load it (examples/cpp), and so does ``torch._inductor.aoti_load_package`` after ``import stompp_kernels``. It is
    for machines like this one, for it holds machine code, and weights in the order of the active implementation's
    kernels. A network on an NVIDIA GPU becomes a package for that: Triton's kernels are compiled into it, and the
    products are those of ``stompp_kernels/_cuda.so``. Load only files that you trust.

    Args:
        packed, example_inputs, dynamic_batch: as for :func:`export_packed`.
        path: of the file, ``*.pt2``.

    Returns:
        The loaded package, to be called as ``packed``. Layers that stayed in float may round differently.

    Raises:
        TypeError, ValueError: as :func:`export_packed`, or ``path`` does not end in .pt2, or the network and the
            inputs are not on one device, the CPU or an NVIDIA GPU.
        OSError: the file cannot be written; said before anything is compiled if it cannot be made.
        RuntimeError: torch is older than 2.12, there is no C++ compiler, kernels for the GPU are missing, or what else
            torch raises as it compiles.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> run = sk.package_packed(sk.convert(model), "net.pt2", torch.randn(2, 1, 8, 8))
        >>> run(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    if Path(path).suffix != ".pt2":
        raise ValueError(f"path must end in .pt2, got {os.fspath(path)!r}")
    check_packed(packed)
    check_inputs("example_inputs", example_inputs, packed)
    _check_device(packed, example_inputs)
    program = _program(packed, example_inputs, dynamic_batch)
    if torch_is_before(PACKAGES):
        needed = ".".join(map(str, PACKAGES))
        raise RuntimeError(
            f"package_packed needs torch >= {needed}, and torch {torch_version()} is installed: AOTInductor hands ops "
            "other types there than the network names. sk.export_packed works"
        )
    # The file is opened first: where it cannot be written, nobody waits for the compiler.
    with replacing(path) as file, tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(Path(folder) / "package.pt2"),
            # Else its loops are for the number of threads that torch has now.
            inductor_configs={"cpp.dynamic_threads": True},
        )
        with open(package, "rb") as compiled:
            shutil.copyfileobj(compiled, file)
    return torch._inductor.aoti_load_package(os.fspath(path))


def _check_device(packed: nn.Module, example_inputs: Any) -> None:
    """Checks that a program without Python has kernels where the network and its inputs are."""
    devices = devices_of(packed)
    if len(devices) != 1 or devices[0].type not in ("cpu", "cuda"):
        raise ValueError(f"packed must be on the CPU or an NVIDIA GPU for a package, and it is on {in_words(devices)}")
    check_input_devices(devices[0], *as_arguments(example_inputs))
    for item in native.implementations() if devices[0].type == "cuda" else ():
        if item.device == "cuda" and not item.available:
            raise RuntimeError(
                f"package_packed needs the implementation {item.name!r} for a network on {devices[0]}, and it cannot "
                f"run here: {item.reason}. For the CPU, move the network with packed.cpu()"
            )


def check_packed(packed: Any) -> None:
    """Refuses what has no packed layer.

    Raises:
        TypeError: with what was given.
    """
    if not isinstance(packed, nn.Module) or not any(isinstance(m, PackedLayer) for m in packed.modules()):
        raise TypeError(f"packed must be a network made by sk.convert, got {type(packed).__name__}")


def _program(packed: nn.Module, example_inputs: Any, dynamic_batch: bool) -> ExportedProgram:
    check_packed(packed)
    check_inputs("example_inputs", example_inputs, packed)
    if isinstance(packed, fx.GraphModule):
        packed = with_plain_output(packed)
    args, kwargs = as_arguments(example_inputs)
    shapes: Any = None
    if dynamic_batch:
        batch = {0: Dim("batch")}
        args, kwargs = tuple(map(two_samples, args)), {key: two_samples(value) for key, value in kwargs.items()}
        shapes = dict.fromkeys(kwargs, batch) if kwargs else (batch,) * len(args)
    # What it cannot read alone is tried again with the answers to what the forward asks, and that error is raised.
    with torch.no_grad(), plain_results(packed), contextlib.suppress(Exception):
        return torch.export.export(packed, args, kwargs, dynamic_shapes=shapes)
    try:
        with torch.no_grad(), plain_results(packed), decided(packed, args, kwargs):
            return torch.export.export(packed, args, kwargs, dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:
        if not dynamic_batch:
            raise
        raise ValueError(
            f"packed does not take batches of any size; dynamic_batch=False exports it for one: {error}"
        ) from error


def load_exported(path: str | os.PathLike[str]) -> nn.Module:
    """Reads a program that :func:`export_packed` wrote, and packs its weights for this machine.

    As ``torch.export.load(path).module()``, which runs the program too, but slowly where it was exported for another
    implementation. Parts of such a file may be pickled: load only files that you trust, and keep ``sk.save_packed``'s
    for the others.

    Args:
        path: of the file.

    Returns:
        The program as a module, to be called as the packed network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no exported program, or its weights are of another version of this package or device.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> packed, x = sk.convert(model), torch.randn(4, 1, 8, 8)
        >>> _ = sk.export_packed(packed, "net.pt2", x)
        >>> torch.equal(sk.load_exported("net.pt2")(x), packed(x))
        True
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {os.fspath(path)!r}")
    try:
        with open(path, "rb") as file:
            program = torch.export.load(file)
    except Exception as error:  # whatever torch's reader stumbles over
        raise ValueError(f"{os.fspath(path)!r} is damaged or no exported program: {error}") from error
    weights = _weights(program.graph)
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for key, (kind, shape, groups) in [(key, weights[name]) for name, key in constants.items() if name in weights]:
        try:
            weight = kind(program.constants[key], shape, groups)
            program.constants[key] = kind.from_words(weight.words(), shape, groups).data
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} holds a weight {key!r} that cannot be read here ({error}); "
                "export the network again"
            ) from error
    return program.module()


def two_samples(value: Any) -> Any:
    """Inputs with a batch of at least 2: a batch of 1 would be exported as a constant."""
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] == 0:
        raise ValueError(f"example_inputs must be tensors with a batch dimension for dynamic_batch, got {value!r}")
    return torch.cat([value, value]) if value.shape[0] == 1 else value


def _weights(graph: fx.Graph) -> dict[str, tuple[type[PackedWeight], tuple[int, ...], int]]:
    """Name of each packed weight among a program's inputs -> its type, shape and groups."""
    found = {}
    for node in graph.nodes:
        if node.op == "call_function" and getattr(node.target, "namespace", "") == "stompp":
            values = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False))
            if isinstance(values.get("weight"), fx.Node):
                shape = values["weight_shape"] if "weight_shape" in values else (values["N"], values["K"])
                kind = BinaryWeight if "binary_weight" in str(node.target) else PackedWeight
                found[values["weight"].name] = (kind, tuple(shape), values.get("groups", 1))
    return found
