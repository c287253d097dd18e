"""Packed layers between float modules."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.nn.packed import PackedLayer, PackSigns
from stompp_kernels.ops.gradients import refuse_to_cut
from stompp_kernels.ops.reference import sign


class SharedSigns(PackSigns):
    """PackSigns that remembers its last result, so that layers which read the same tensor in turn share it.

    Only the words are kept; the floats may be freed. Nothing is shared while a graph is traced (the compiler merges
    equal calls), or of inference tensors, which can change without a trace.

    Example:
        >>> signs, x = sk.nn.SharedSigns(images=False), torch.randn(4, 64)
        >>> signs(x) is signs(x)
        True
    """

    _last: tuple[weakref.ref[Tensor], int, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the words of ``x``: those of the last call if it had the same tensor, unchanged since."""
        if torch.compiler.is_compiling() or x.is_inference():
            return super().forward(x)
        version, last = x._version, self._last  # read once: another thread may replace it
        if last is not None and last[1] == version and last[0]() is x:
            return last[2]
        words = super().forward(x)
        self._last = (weakref.ref(x), version, words)
        return words

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


def of_the_layer(name: str) -> property:
    """Makes an attribute that models read of the float layer in whose place this one stands."""
    return property(lambda self: getattr(self.layer, name), doc=f"The packed layer's ``{name}``.")


class PackedOnFloats(nn.Module):
    """A packed layer that takes floats, whose signs it packs itself, and gives floats or the next layer's words.

    The attributes that models read of nn.Linear and nn.Conv2d are those of the packed layer.

    Args:
        layer: writes floats, or words where a packed layer behind it is all that reads them.
        signs: packs the input; several layers may share one.

    Shape:
        As the float layer: [..., K] to [..., N] or [..., ceil(N/32)], or [B, C, H, W] to [B, O, OH, OW].

    Raises:
        ValueError: ``layer`` writes both.

    Example:
        >>> affine = sk.ops.Affine(torch.ones(8), torch.zeros(8))
        >>> inner = sk.nn.PackedLinear(sk.ops.pack_weight(torch.randn(8, 64)), affine)
        >>> layer = sk.nn.PackedOnFloats(inner, sk.nn.SharedSigns(images=False))
        >>> layer(torch.randn(4, 64)).shape, layer.in_features
        (torch.Size([4, 8]), 64)
    """

    def __init__(self, layer: PackedLayer, signs: PackSigns) -> None:
        super().__init__()
        if layer.writes == "both":
            raise ValueError(f"layer must write floats or bits, got one that writes {layer.writes}")
        self.signs, self.layer = signs, layer

    weight, bias = of_the_layer("weight"), of_the_layer("bias")
    in_features, out_features = of_the_layer("in_features"), of_the_layer("out_features")
    in_channels, out_channels = of_the_layer("in_channels"), of_the_layer("out_channels")
    kernel_size, stride, padding = of_the_layer("kernel_size"), of_the_layer("stride"), of_the_layer("padding")
    dilation, groups = of_the_layer("dilation"), of_the_layer("groups")

    def forward(self, x: Tensor) -> Tensor:
        """Packs the signs of ``x`` and runs the packed layer on them."""
        return self.layer(self.signs(x))


class SignActivation(nn.Module):
    """A committed activation that stays where it is: floats to +-1 of the same type; 0 and NaN have the sign +1.

    Raises:
        RuntimeError: at a call: the input requires a gradient, which signs do not pass.

    Example:
        >>> sk.nn.SignActivation()(torch.tensor([-0.5, 0.0, 3.0])).tolist()
        [-1.0, 1.0, 1.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the signs of ``x``, in its type and shape."""
        refuse_to_cut("SignActivation", x=x)
        return sign(x)
