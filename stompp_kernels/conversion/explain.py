"""Explanations of packed networks: what runs where, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from stompp_kernels.conversion.packing.checks import what_is_required
from stompp_kernels.conversion.profile import profile
from stompp_kernels.native import active_implementation, implementation_of
from stompp_kernels.nn import (
    BFloat16Attention,
    BFloat16Linear,
    BinaryLayer,
    BinaryMatmul,
    BinaryWeightConv2d,
    BinaryWeightLayer,
    FloatConv2d,
    MaxPoolSigns,
    PackBatchNorm,
    PackedConv2d,
    PackedLinear,
    PackedMatmul,
    PackedOnFloats,
    PackSigns,
    PrepackedConv2d,
    SignActivation,
    UnpackSigns,
)
from stompp_kernels.nn.bfloat16 import MayMultiplyBFloat16
from stompp_kernels.nn.file_classes import file_classes
from stompp_kernels.nn.packed import PackedLayer
from stompp_kernels.progression.input_checks import check_inputs
from stompp_kernels.table import table

_SHOWN = 4  # names of own tensors
_NO_BFLOAT16 = "float_layers='fast' has no effect where bfloat16 is not multiplied"


@dataclass(frozen=True)
class LayerExplanation:
    """Describes one module call of a packed network.

    Attributes:
        name: qualified name of the submodule.
        kernel: the op that runs, with its epilogue; for float modules their type.
        implementation: what runs the kernel: an instruction set, "cuda", "triton", "reference" or "torch".
        nbytes: bytes of weights and constants in memory.
        file_nbytes: bytes of the same in a file of ``sk.save_packed``.
        float_nbytes: bytes of the same in fp32.
        reason: why it runs as it does.
        operations: multiplications and additions of a product, for the inputs given; None without inputs.
        ms: milliseconds in a call of the network, likewise; of a module that runs several times, all of them together.
        share: of the network's time, likewise; what is missing from 1 is between the modules.
        arithmetic: what the module multiplies, or computes with where it multiplies nothing: "bits", or "bits, then
            float32" where sums are scaled; "float32"; "bfloat16", perhaps with "weights in two parts".
    """

    name: str
    kernel: str
    implementation: str
    nbytes: int
    file_nbytes: int
    float_nbytes: int
    reason: str
    operations: int | None = None
    ms: float | None = None
    share: float | None = None
    arithmetic: str = "float32"


@dataclass(frozen=True)
class Explanation:
    """Describes a packed network, in a row for each module call; ``print`` shows a table and the sums.

    Attributes:
        rows: one for each call, in order of execution.
        arguments: what tracing fixed of the network's arguments, such as "mask is None"; another value is refused.
        nbytes: bytes in memory of all weights and constants, each counted once however often it is used.
        file_nbytes: bytes of the tensors in a file of ``sk.save_packed``, which also has a header.
        float_nbytes: bytes of all weights and constants in fp32, each counted once.
        own_tensors: names of the parameters and buffers that belong to no row, for a forward reads them itself; the
            sums include them.
    """

    rows: tuple[LayerExplanation, ...]
    arguments: tuple[str, ...] = ()
    nbytes: int = 0
    file_nbytes: int = 0
    float_nbytes: int = 0
    own_tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        timed = any(row.ms is not None for row in self.rows)
        titles = ("layer", "kernel", "implementation", "arithmetic", "bytes", "in a file", "in fp32")
        cells = [
            (
                *(row.name, row.kernel, row.implementation, row.arithmetic),
                *(row.nbytes, row.file_nbytes, row.float_nbytes),
                *((row.operations, f"{row.ms or 0.0:.3f}", f"{row.share or 0.0:.1%}") if timed else ()),
                row.reason,
            )
            for row in self.rows
        ]
        shown = table((*titles, *(("operations", "ms", "share") if timed else ()), "why"), cells)
        fixed = [f"fixed arguments: {'; '.join(self.arguments)}"] if self.arguments else []
        return "\n".join([shown, self._in_all(), *fixed])

    def _in_all(self) -> str:
        """Says what all weights and constants take together."""
        smaller = f": {self.float_nbytes / self.file_nbytes:.1f}x smaller in a file" if self.file_nbytes else ""
        more = len(self.own_tensors) - _SHOWN
        names = (*self.own_tensors[:_SHOWN], *((f"{more} more",) if more > 0 else ()))
        own = f"; with {', '.join(names)}, which the forward reads itself" if names else ""
        share = sum({row.name: row.share or 0.0 for row in self.rows}.values())
        timed = f"; {share:.1%} of the time, the rest is between them" if share else ""
        sizes = f"{self.nbytes:,} bytes, {self.file_nbytes:,} in a file, {self.float_nbytes:,} in fp32"
        return f"in all: {sizes}{smaller}{own}{timed}"


def explain(packed: nn.Module, inputs: Any = None, seconds: float = 1.0) -> Explanation:
    """Tells of each layer of a packed network its kernel, implementation, bytes, and why it stayed in float.

    Rows are in order of execution; where the model kept its own forward, in that of its modules.

    Args:
        packed: made by ``sk.convert`` or ``sk.load_packed``.
        inputs: a tensor, tuple or dict of inputs: the network is run on them, on the CPU, and rows tell operations,
            time and share of the time too.
        seconds: how long the network is run for that.

    Returns:
        An :class:`Explanation`.

    Raises:
        TypeError: ``packed`` is no such network, or ``inputs`` are no inputs of it.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> progression = sk.StoMPP(model, total_steps=10, regime="vanilla_ste")  # commits all layers at once
        >>> for row in sk.explain(sk.convert(model)).rows[2:5]:
        ...     print(row.kernel, row.reason, sep=": ")
        pack_outside: BatchNorm or shift, and the sign, of a float input folded to one comparison
        bgemm + threshold: all up to the next signs folded to integer thresholds
        bgemm + affine: what comes next needs floats
    """
    if inputs is not None:
        check_inputs("inputs", inputs, packed)
    modules = dict(packed.named_modules())
    if isinstance(packed, fx.GraphModule):
        calls = [str(node.target) for node in packed.graph.nodes if node.op == "call_module"]
    elif any(isinstance(module, (PackedOnFloats, BinaryWeightLayer, PackedMatmul)) for module in modules.values()):
        calls = [name for name, module in modules.items() if _does_something(module)]
    else:
        raise TypeError(f"packed must be a network made by sk.convert, got {type(packed).__name__}")
    devices = [module.weight.device for module in modules.values() if isinstance(module, PackedLayer)]
    device = devices[0] if devices else torch.device("cpu")
    rows = [_explain(name, modules[name], device) for name in calls]
    totals = _totals(packed, rows)
    if inputs is not None:
        times = {time.name: time for time in profile(packed, inputs, seconds)}
        rows = [
            replace(row, operations=times[row.name].operations, ms=times[row.name].ms, share=times[row.name].share)
            for row in rows
            if row.name in times
        ]
    fixed = what_is_required(packed.graph) if isinstance(packed, fx.GraphModule) else ()
    return Explanation(tuple(rows), fixed, *totals)


def _totals(packed: nn.Module, rows: list[LayerExplanation]) -> tuple[int, int, int, tuple[str, ...]]:
    """The bytes of all weights and constants, as an :class:`Explanation` has them, and the names of the own tensors."""
    nbytes = file_nbytes = float_nbytes = 0
    modules: set[nn.Module] = set()
    counted: set[int] = set()
    # Files that name a class hold a tensor that modules share once, those with a graph the tensors of each module.
    names_its_class = hasattr(packed, "save_pretrained") or type(packed).__name__ in file_classes()
    for row in rows:
        module = packed.get_submodule(row.name)
        if module in modules:
            continue
        modules.update(module.modules())
        nbytes += row.nbytes
        file_nbytes += row.file_nbytes
        float_nbytes += row.float_nbytes
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) in counted:
                nbytes, float_nbytes = nbytes - tensor.nbytes, float_nbytes - _float_nbytes_of([tensor])
                file_nbytes -= tensor.nbytes if names_its_class else 0
            counted.add(id(tensor))
        if isinstance(module, PackedLayer):
            if id(module.weight.data) in counted:
                nbytes, float_nbytes = nbytes - module.weight.nbytes, float_nbytes - _float_nbytes(module)
            counted.add(id(module.weight.data))
    own = {name: tensor for name, tensor in _tensors_of(packed).items() if id(tensor) not in counted}
    size = sum(tensor.nbytes for tensor in own.values())
    return nbytes + size, file_nbytes + size, float_nbytes + _float_nbytes_of(own.values()), tuple(own)


def _tensors_of(packed: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a network; of a graph those that it reads itself."""
    if not isinstance(packed, fx.GraphModule):
        return {**dict(packed.named_parameters()), **dict(packed.named_buffers())}
    names = dict.fromkeys(str(node.target) for node in packed.graph.nodes if node.op == "get_attr")
    found = {name: attrgetter(name)(packed) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _does_something(module: nn.Module) -> bool:
    """Returns whether a module computes rather than holds others."""
    if isinstance(module, (BinaryLayer, BinaryMatmul)):
        return True
    return not list(module.children()) and not isinstance(module, (nn.Identity, nn.Dropout))


@dataclass(frozen=True)
class _Kernel:
    """The op of this package that a module runs, and what a row tells of it."""

    op: str
    epilogue: str
    nbytes: int
    float_nbytes: int
    reason: str
    arithmetic: str = "bits"


def _explain(name: str, module: nn.Module, device: torch.device) -> LayerExplanation:
    kernel = _kernel_of(module)
    if kernel is None:
        return _float_module(name, module)
    in_file = kernel.nbytes
    if isinstance(module, PackedLayer):
        in_file += module.weight.portable_nbytes - module.weight.nbytes
    elif isinstance(module, MayMultiplyBFloat16):
        in_file -= module.rounded_nbytes
    shown, implementation, reason = kernel.op + kernel.epilogue, implementation_of(kernel.op, device), kernel.reason
    sizes = kernel.nbytes, in_file, kernel.float_nbytes
    return LayerExplanation(name, shown, implementation, *sizes, reason, arithmetic=kernel.arithmetic)


def _kernel_of(module: nn.Module) -> _Kernel | None:
    """Returns the kernel of a packed or prepacked module; None for any other."""
    if isinstance(module, BinaryWeightLayer):
        op = "conv2d_binary_weight" if isinstance(module, BinaryWeightConv2d) else "linear_binary_weight"
        return _Kernel(op, "", module.nbytes, _float_nbytes(module), "binary weights, float inputs", "float32")
    if isinstance(module, (PackedConv2d, PackedLinear)):
        return _product(module)
    if isinstance(module, FloatConv2d):
        return _float_conv(module)
    if isinstance(module, PackedMatmul):
        left = "one of +1 and -1, the other of 1 and 0" if module.zero_one else "both of +1 and -1"
        reason = f"a product of two activations, {left}, that are packed at each call"
        return _Kernel("batched_bgemm", "", 0, 0, reason)
    if isinstance(module, MaxPoolSigns):
        return _Kernel("max_pool2d_signs", "", 0, 0, "the largest of signs is their AND")
    if isinstance(module, PackSigns):
        return _Kernel("pack_signs", "", 0, 0, "float input of a binary layer")
    if isinstance(module, PackBatchNorm):
        nbytes = sum(t.numel() * t.element_size() for t in module.buffers())
        reason = "BatchNorm or shift, and the sign, of a float input folded to one comparison"
        return _Kernel("pack_outside", "", nbytes, 2 * nbytes, reason, "float32")
    if isinstance(module, UnpackSigns):
        return _Kernel("unpack_signs", "", 0, 0, "a float module reads these signs")
    return None


def _product(layer: PackedConv2d | PackedLinear) -> _Kernel:
    op = "bconv2d" if isinstance(layer, PackedConv2d) else "bgemm"
    if layer.has_thresholds:
        with_shortcut = ", with a +-1 shortcut," if layer.thresholds.shape[0] == 2 else ""
        epilogue, reason = " + threshold", f"all up to the next signs{with_shortcut} folded to integer thresholds"
    else:
        epilogue = " + affine" + ("" if layer.writes == "floats" else " signs")
        folded = f"BatchNorm{'' if layer.rprelu is None else ', RPReLU'} and float shortcut folded"
        reason = {
            "floats": layer.why_floats or "what comes next needs floats",
            "bits": f"{folded}, of which only the signs are read",
            "both": f"{folded}, read as signs and as floats",
        }[layer.writes]
    arithmetic = "bits" if layer.has_thresholds else "bits, then float32"
    return _Kernel(op, epilogue, layer.nbytes, _float_nbytes(layer), reason, arithmetic)


def _float_conv(conv: FloatConv2d) -> _Kernel:
    reason = "kept in float by prepare"
    if not conv.bfloat16:
        reason += "; torch's convolution to the last bit"
    elif conv.arithmetic == "float32":
        reason += f"; {_NO_BFLOAT16}"
    if conv.writes == "bits":
        reason += ", BatchNorm and sign folded to one comparison"
    elif conv.writes == "affine":
        reason += ", BatchNorm or bias folded"
    op = "conv2d_float_signs" if conv.writes == "bits" else "conv2d_float"
    constants = conv.nbytes - conv.weight.nbytes - conv.rounded_nbytes
    float_nbytes = 4 * conv.out_channels * conv.panels.shape[1] + 2 * constants
    epilogue = " + affine" if conv.writes == "affine" else ""
    return _Kernel(op, epilogue, conv.nbytes, float_nbytes, reason, conv.arithmetic)


def _float_module(name: str, module: nn.Module) -> LayerExplanation:
    tensors = [*module.parameters(), *module.buffers()]
    nbytes = sum(t.nbytes for t in tensors)
    reason = "stands next to a float layer"
    if isinstance(module, BinaryLayer):
        float_input = (
            "its input is not committed yet" if module.activation else "its input is float, its padding is not 0"
        )
        reason = float_input if module.committed else "not committed yet"
    elif isinstance(module, BinaryMatmul):
        reason = "a product of two activations, not committed yet"
    elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        reason = "kept in float by prepare"
    elif isinstance(module, SignActivation):
        reason = "float modules alone read these signs"
    in_memory, implementation = nbytes, "torch"
    arithmetic = next((str(t.dtype).removeprefix("torch.") for t in module.parameters()), "float32")
    if isinstance(module, PrepackedConv2d):
        in_memory += module.reordered_nbytes
    elif isinstance(module, BFloat16Linear):
        in_memory, nbytes = nbytes, nbytes - module.rounded_nbytes
        if module.arithmetic != "float32":
            arithmetic, implementation = module.arithmetic, active_implementation()
        else:
            reason += f"; {_NO_BFLOAT16}"
    elif isinstance(module, BFloat16Attention):
        arithmetic, reason = module.arithmetic, "attention stays in float; with few queries or keys in float32"
        if arithmetic == "float32":
            reason = f"attention stays in float; {_NO_BFLOAT16}"
    kernel = type(module).__name__
    sizes = in_memory, nbytes, _float_nbytes_of(t for t in tensors if t is not getattr(module, "rounded", None))
    return LayerExplanation(name, kernel, implementation, *sizes, reason, arithmetic=arithmetic)


def _float_nbytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(4 * t.numel() if t.is_floating_point() else t.nbytes for t in tensors)


def _float_nbytes(layer: PackedLayer) -> int:
    return 4 * layer.weight.shape[0] * layer.weight.unpacked_row_numel
