"""The convolutions that stay in float, run by this package's kernel where it gives torch's bits.

What the signs of a packed network are read from must be the float simulation's to the last bit: a convolution is
swapped only if both give the same bits for an image of the size that it will read. torch's own order of additions
depends on that size, the processor and the number of threads. Fast ones, which multiply bfloat16, are swapped whatever
their bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from stompp_kernels import native
from stompp_kernels.conversion.packing.folding import fold_limits, fold_norm
from stompp_kernels.conversion.packing.graph_state import Pixels
from stompp_kernels.conversion.packing.in_place import remove_dead_nodes
from stompp_kernels.conversion.packing.nodes import fresh_name, has_hooks, is_fixed_norm
from stompp_kernels.nn import FloatConv2d, PackBatchNorm, PackSigns, PrepackedConv2d, UnpackSigns
from stompp_kernels.ops import Affine, Limits
from stompp_kernels.ops.checks import pair

TO_SIGNS = "_signs"  # ends the name of a convolution that writes signs as bits
_UNKNOWN_SIZE = 56
_ONE_TO_ONE = (nn.BatchNorm2d, nn.ReLU, nn.Hardtanh, nn.Identity, PackBatchNorm, PackSigns)


def pack_float_convs(packed: fx.GraphModule, pixels: dict[fx.Node, Pixels], fast: bool = False) -> None:
    """Swaps the graph's plain convolutions, with the BatchNorm, sign and packing behind them and unpacking before.

    Args:
        packed: its modules and graph are changed.
        pixels: height and width of what a node gives, where that is known; grows by the new nodes.
        fast: let them multiply bfloat16 where the processor does.
    """
    if not fast and native.active_implementation() in ("reference", "scalar"):  # nothing there is as fast as oneDNN
        return
    modules = dict(packed.named_modules(remove_duplicate=False))

    def module_of(node: fx.Node) -> nn.Module | None:
        return modules.get(str(node.target)) if node.op == "call_module" else None

    calls = Counter(str(node.target) for node in packed.graph.nodes if node.op == "call_module")
    for node in list(packed.graph.nodes):
        conv = module_of(node)
        source = node.args[0] if node.args else None
        if type(conv) is not nn.Conv2d or not has_kernel(conv) or not isinstance(source, fx.Node):
            continue
        if calls[str(node.target)] > 1:
            continue
        unpacking = module_of(source)
        reads = "bits" if isinstance(unpacking, UnpackSigns) and unpacking.images else "floats"
        size = pixels.get(source) or _before(conv, _pixels_of(node, module_of, pixels)) or _some_pixels(conv)
        if not fast and not _gives_the_same_bits(conv, reads, size):
            continue
        end, epilogue = _what_follows(node, conv, module_of)
        name = str(node.target)
        if end is not node:
            name = fresh_name(packed, name + (TO_SIGNS if isinstance(epilogue, Limits) else "_affine"))
        packed.add_submodule(name, FloatConv2d.of(conv, reads, epilogue, fast))
        with packed.graph.inserting_before(end):
            twin = packed.graph.call_module(name, (source.args[0] if reads == "bits" else source,))
        twin.meta.update(end.meta)
        if end in pixels:
            pixels[twin] = pixels[end]
        end.replace_all_uses_with(twin)
    remove_dead_nodes(packed.graph)
    packed.delete_all_unused_submodules()


def has_kernel(conv: nn.Conv2d) -> bool:
    """Whether :class:`FloatConv2d` can do what a convolution does."""
    return (
        conv.groups == 1
        and not has_hooks(conv)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and conv.weight.device.type == "cpu"
        and conv.weight.dtype is torch.float32
    )


@torch.no_grad()
def _gives_the_same_bits(conv: nn.Conv2d, reads: str, pixels: Pixels) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, conv.in_channels, *pixels, dtype=torch.float32, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    if reads == "bits":
        x = 1 - 2 * (x < 0).to(x.dtype)
    return torch.equal(FloatConv2d.of(conv)(x), PrepackedConv2d.of(conv)(x))


def _what_follows(
    node: fx.Node, conv: nn.Conv2d, module_of: Callable[[fx.Node], nn.Module | None]
) -> tuple[fx.Node, Affine | Limits | None]:
    """The last node whose work the convolution's twin does, and its epilogue."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    module = None if user is None else module_of(user)
    if user is not None and isinstance(module, (PackBatchNorm, PackSigns)) and module.images:
        return user, _limits(conv, module)
    if user is not None and isinstance(module, nn.BatchNorm2d) and is_fixed_norm(module) and conv.bias is None:
        for fused in (True, False):
            folded = fold_norm(module, fused)
            if folded is not None:
                scale, bias = folded
                return user, Affine(scale, bias, fused=fused)
    return node, None


@torch.no_grad()
def _limits(conv: nn.Conv2d, packer: PackBatchNorm | PackSigns) -> Limits:
    """Returns the epilogue of the bare sums, for what the packer says of sums and bias."""
    low, high = (torch.full((conv.out_channels,), value, dtype=torch.float32) for value in (0.0, torch.inf))
    if isinstance(packer, PackBatchNorm):
        low, high = packer.low, packer.high
    bias = conv.bias
    if bias is None:
        return Limits(low, high)

    def sign(sums: Tensor) -> Tensor:
        y = sums + bias
        return torch.where((y < low) | (y > high), -1.0, 1.0)

    return Limits(*fold_limits(sign, conv.out_channels, low.device))


def _pixels_of(
    node: fx.Node, module_of: Callable[[fx.Node], nn.Module | None], pixels: Mapping[fx.Node, Pixels]
) -> Pixels | None:
    """Height and width of what a node gives, from what is known of the nodes behind it."""
    if node in pixels:
        return pixels[node]
    for user in node.users:
        module = module_of(user)
        if isinstance(module, _ONE_TO_ONE):
            found = _pixels_of(user, module_of, pixels)
        elif isinstance(module, nn.MaxPool2d):
            found = _before(module, _pixels_of(user, module_of, pixels))
        else:
            continue
        if found is not None:
            return found
    return None


def _some_pixels(conv: nn.Conv2d) -> Pixels:
    sizes = [max(_UNKNOWN_SIZE, conv.dilation[i] * (conv.kernel_size[i] - 1) + 1) for i in (0, 1)]
    return sizes[0], sizes[1]


def _before(module: nn.Conv2d | nn.MaxPool2d, pixels: Pixels | None) -> Pixels | None:
    """The largest image of which a window gives that many pixels."""
    if pixels is None:
        return None
    kernel, stride, padding, dilation = (
        pair(name, getattr(module, name), 0) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    before = [pixels[i] * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) for i in (0, 1)]
    return before[0], before[1]
