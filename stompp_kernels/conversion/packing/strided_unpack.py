"""Pixels that no convolution reads are not unpacked: of 1x1 convolutions with a stride, as in ResNet's shortcuts."""

from __future__ import annotations

from collections import Counter
from typing import TypeGuard

from torch import fx, nn

from stompp_kernels.nn import UnpackSigns


def move_strides_to_unpacking(packed: fx.GraphModule) -> None:
    """Where all that reads unpacked images are 1x1 convolutions of one stride, the unpacking takes it from them.

    Args:
        packed: its modules are changed; the convolutions must be nobody else's.
    """
    modules = dict(packed.named_modules(remove_duplicate=False))
    called = {node: modules[str(node.target)] for node in packed.graph.nodes if node.op == "call_module"}
    calls = Counter(called.values())
    for node, unpacking in called.items():
        if not isinstance(unpacking, UnpackSigns) or not unpacking.images:
            continue
        readers = [called.get(user) for user in node.users]
        convs = [reader for reader in readers if _reads_single_pixels(reader) and calls[reader] == 1]
        strides = {conv.stride for conv in convs}
        if len(convs) == len(readers) and len(strides) == 1:
            (unpacking.stride,) = strides
            for conv in convs:
                conv.stride = (1, 1)


def _reads_single_pixels(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return (
        module is not None
        and type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.padding in ("valid", (0, 0))
        and module.padding_mode == "zeros"
    )
