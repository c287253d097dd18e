"""The inference twins: layers whose weights, and mostly activations too, are bits.

Activations travel as words: int32 [B, H, W, ceil(C/32)] for images (NHWC), [..., ceil(K/32)] for features. A packed
layer reads words and writes floats (affine epilogue) or the next layer's words (threshold epilogue). State dicts hold
the portable word order; it is packed for the running machine when it is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.ops import Affine, PackedWeight, Threshold, bconv2d, bgemm, pack_outside, pack_signs, unpack_signs


class PackSigns(nn.Module):
    """Floats to words: [B, C, H, W] to [B, H, W, C_words], or [..., K] to [..., K_words]."""

    def __init__(self, images: bool) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        return pack_signs(x.permute(0, 2, 3, 1) if self.images else x)

    def extra_repr(self) -> str:
        return f"images={self.images}"


class PackBatchNorm(nn.Module):
    """BatchNorm, sign and packing in one pass: [B, C, H, W] to [B, H, W, C_words], or [B, C] to [B, C_words].

    Buffers: ``low`` and ``high`` float32 [C], see :func:`stompp_kernels.ops.pack_outside`.
    """

    def __init__(self, channels: int, images: bool) -> None:
        super().__init__()
        self.channels, self.images = channels, images
        self.register_buffer("low", torch.full((channels,), -torch.inf))
        self.register_buffer("high", torch.full((channels,), torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        return pack_outside(x.permute(0, 2, 3, 1) if self.images else x, self.low, self.high)

    def extra_repr(self) -> str:
        return f"{self.channels}, images={self.images}"


class UnpackSigns(nn.Module):
    """Words to +-1 float32: the inverse of :class:`PackSigns` for C channels or K features."""

    def __init__(self, channels: int, images: bool) -> None:
        super().__init__()
        self.channels, self.images = channels, images

    def forward(self, words: Tensor) -> Tensor:
        x = unpack_signs(words, self.channels)
        return x.permute(0, 3, 1, 2) if self.images else x

    def extra_repr(self) -> str:
        return f"{self.channels}, images={self.images}"


class PackedLayer(nn.Module):
    """A packed weight with one of the two epilogues.

    Buffers: ``scale`` and ``bias`` float32 [N] (affine), or ``thresholds`` int32 [1 or 2, N] and ``flip_words`` int32
    [ceil(N/32)] (threshold; two rows where a +-1 residual picks one).

    Attributes:
        weight: the packed weight.
        replaces: names of the modules of the float network whose work it does, in order.
    """

    def __init__(self, weight: PackedWeight, epilogue: Affine | Threshold, replaces: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.weight, self.replaces = weight, replaces
        self.writes_bits = isinstance(epilogue, Threshold)
        if isinstance(epilogue, Threshold):
            self.register_buffer("thresholds", epilogue.thresholds)
            self.register_buffer("flip_words", epilogue.flip_words)
        else:
            self.register_buffer("scale", epilogue.scale)
            self.register_buffer("bias", epilogue.bias)

    def epilogue(self, residual: Tensor | None) -> Affine | Threshold:
        """The epilogue with this call's residual: words for a threshold, floats for an affine one."""
        if self.writes_bits:
            return Threshold(self.thresholds, self.flip_words, residual)
        return Affine(self.scale, self.bias, residual)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: packed weight and epilogue."""
        return self.weight.nbytes + sum(b.numel() * b.element_size() for b in self.buffers())

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        """Moves to a device; the constants stay float32 and int32, whatever type the rest of a network is cast to."""
        device = fn(torch.empty(0)).device
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(device)
        self.weight = self.weight.to(device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight.words()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        words = state_dict.pop(prefix + "weight", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        missing = args[2]
        if words is None:
            missing.append(prefix + "weight")
        else:
            device = self.weight.data.device
            self.weight = PackedWeight.from_words(words.to(device), self.weight.shape, self.weight.groups)

    def extra_repr(self) -> str:
        out = "bits" if self.writes_bits else "float"
        return f"shape={list(self.weight.shape)}, groups={self.weight.groups}, writes {out}"


class PackedLinear(PackedLayer):
    """Words [..., ceil(K/32)] to floats [..., N] or words [..., ceil(N/32)]."""

    def forward(self, x_words: Tensor, residual: Tensor | None = None) -> Tensor:
        return bgemm(x_words, self.weight, self.epilogue(residual))


class PackedConv2d(PackedLayer):
    """Words [B, H, W, ceil(C/32)] to floats [B, O, OH, OW] or words [B, OH, OW, ceil(O/32)].

    ``stride``, ``padding``, ``dilation`` and ``padding_value`` are those of :func:`stompp_kernels.ops.bconv2d`.
    """

    def __init__(
        self,
        weight: PackedWeight,
        epilogue: Affine | Threshold,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        padding_value: int,
        replaces: tuple[str, ...] = (),
    ) -> None:
        super().__init__(weight, epilogue, replaces)
        self.stride, self.padding, self.dilation, self.padding_value = stride, padding, dilation, padding_value

    def forward(self, x_words: Tensor, residual: Tensor | None = None) -> Tensor:
        y = bconv2d(
            x_words,
            self.weight,
            self.stride,
            self.padding,
            self.dilation,
            self.weight.groups,
            self.padding_value,
            self.epilogue(residual),
        )
        return y if self.writes_bits else y.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
