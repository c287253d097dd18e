"""The float convolutions of a packed network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.ops.gradients import transforms_are_active

_CHANNELS_LAST = torch.channels_last
_mkldnn_is_enabled = torch._C._get_mkldnn_enabled
# None in builds of torch without oneDNN.
_convolution = getattr(getattr(torch.ops.mkldnn, "_convolution_pointwise", None), "default", None)


class PrepackedConv2d(nn.Conv2d):
    """An nn.Conv2d for inference whose weights are kept in oneDNN's order on the CPU.

    nn.Conv2d brings them into it at every call. Here the first call does, and one after the weights change; state dicts
    hold the usual weights. Results are nn.Conv2d's, bit for bit. Where the input is not channels_last, is on another
    device, needs a gradient, or is being traced, it is nn.Conv2d.

    Example:
        >>> conv = nn.Conv2d(3, 16, 3)
        >>> x = torch.randn(1, 3, 8, 8).to(memory_format=torch.channels_last)
        >>> with torch.no_grad():
        ...     torch.equal(sk.nn.PrepackedConv2d.of(conv)(x), conv(x))
        True
    """

    _reordered: tuple[Any, Tensor] | None = None

    @classmethod
    def of(cls, conv: nn.Conv2d) -> PrepackedConv2d:
        """Makes the same convolution from an nn.Conv2d, sharing its parameters."""
        with torch.device("meta"):
            twin = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.groups,
                conv.bias is not None,
                conv.padding_mode,
            )
        twin.weight, twin.bias = conv.weight, conv.bias
        return twin.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves floats [B, C, H, W], as nn.Conv2d does."""
        if torch.compiler.is_compiling() or not self._can_prepack(input):
            return super().forward(input)
        geometry = self.padding, self.stride, self.dilation, self.groups
        assert _convolution is not None
        return _convolution(input, self._weight_for(input), self.bias, *geometry, "none", [], "")

    def _can_prepack(self, x: Tensor) -> bool:
        weight = self.weight
        return (
            x.is_cpu
            and not transforms_are_active()
            and x.dtype is weight.dtype is torch.float32
            and x.dim() == 4
            and x.is_contiguous(memory_format=_CHANNELS_LAST)
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            and not torch.is_autocast_enabled("cpu")
            and _convolution is not None
            and _mkldnn_is_enabled()
        )

    def _weight_for(self, x: Tensor) -> Tensor:
        weight = self.weight
        key = (weight.data_ptr(), None if weight.is_inference() else weight._version)
        if self._reordered is None or self._reordered[0] != key:
            geometry = self.padding, self.stride, self.dilation, self.groups
            sizes = [1, *x.shape[1:]]
            self._reordered = key, torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *geometry, sizes)
        return self._reordered[1]

    @property
    def reordered_nbytes(self) -> int:
        """The bytes of the weights in oneDNN's order; 0 before they are made."""
        return 0 if self._reordered is None else self._reordered[1].numel() * self._reordered[1].element_size()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reordered": None}
