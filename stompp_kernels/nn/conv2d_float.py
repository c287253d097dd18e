"""The float convolutions of a packed network, with what follows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.nn.bfloat16 import MayMultiplyBFloat16, rounded_panels
from stompp_kernels.nn.gives_floats import GivesFloats
from stompp_kernels.nn.state import refused_casts
from stompp_kernels.ops import Affine, FloatWeight, Limits, pack_float_weight
from stompp_kernels.ops.checks import check_choice, pair
from stompp_kernels.ops.conv2d_float import conv2d_by_torch, conv2d_float_form
from stompp_kernels.ops.reference import FLOAT_PANEL


class FloatConv2d(GivesFloats, MayMultiplyBFloat16):
    """Convolution with float weights that reads floats or bits, and writes floats or bits; for inference.

    Floats [B, C, H, W] or words [B, H, W, ceil(C/32)] become floats [B, O, OH, OW], or words [B, OH, OW, ceil(O/32)].

    Buffers: ``panels``, the weights as :class:`stompp_kernels.ops.FloatWeight` holds them; ``scale`` and ``bias``
    float32 [O] where floats are scaled and shifted, as by a BatchNorm; ``low`` and ``high`` float32 [O] where bits are
    written, see :func:`stompp_kernels.ops.pack_outside`. ``rounded``, the weights in bfloat16 where these are
    multiplied; state dicts leave it out.

    Args:
        in_channels, out_channels: C and O.
        kernel_size, stride, padding, dilation: as in nn.Conv2d; padding is with zeros.
        reads: "floats" or "bits".
        writes: "floats", "affine" (floats, scaled and shifted), or "bits".
        fused: whether scale and bias are one multiply-add, see :class:`stompp_kernels.ops.Affine`.
        bfloat16: multiply bfloat16 where the processor has instructions for it: weights in one part where floats are
            read, in two where bits are, see :func:`stompp_kernels.ops.conv2d_float`. Elsewhere, and on other devices
            than the CPU, float32 is multiplied.

    Raises:
        ValueError: an argument has a value that is not allowed.

    Example:
        >>> conv = nn.Conv2d(3, 16, 3, padding=1)
        >>> x = torch.randn(1, 3, 8, 8)
        >>> with torch.no_grad():
        ...     torch.allclose(sk.nn.FloatConv2d.of(conv)(x), conv(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        reads: str = "floats",
        writes: str = "floats",
        fused: bool = False,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        check_choice("reads", reads, ("floats", "bits"))
        check_choice("writes", writes, ("floats", "affine", "bits"))
        self.in_channels, self.out_channels, self.reads, self.writes = in_channels, out_channels, reads, writes
        self.kernel_size, self.stride = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
        self.padding, self.dilation, self.fused = pair("padding", padding, 0), pair("dilation", dilation, 1), fused
        self.bfloat16 = bfloat16
        K = in_channels * self.kernel_size[0] * self.kernel_size[1]
        panels = torch.zeros(-(-out_channels // FLOAT_PANEL), K, FLOAT_PANEL, dtype=torch.float32)
        self.register_buffer("panels", panels)
        for name, of, value in (
            ("scale", "affine", 1.0),
            ("bias", "affine", 0.0),
            ("low", "bits", 0.0),
            ("high", "bits", torch.inf),
        ):
            constant = torch.full((out_channels,), value, dtype=torch.float32) if writes == of else None
            self.register_buffer(name, constant)
        self.register_buffer("rounded", None, persistent=False)
        self.round_weight()

    @classmethod
    def of(
        cls, conv: nn.Conv2d, reads: str = "floats", epilogue: Affine | Limits | None = None, bfloat16: bool = False
    ) -> FloatConv2d:
        """Makes the twin of a convolution, with what follows it.

        Args:
            conv: of one group, padded with zeros.
            reads: "floats" or "bits".
            epilogue: what is done with the bare sums; None adds the convolution's own bias.
            bfloat16: as above.
        """
        if epilogue is None and conv.bias is not None:  # to multiply by 1 rounds nothing
            epilogue = Affine(torch.ones_like(conv.bias), conv.bias.detach(), fused=True)
        writes = "bits" if isinstance(epilogue, Limits) else "floats" if epilogue is None else "affine"
        fused = isinstance(epilogue, Affine) and epilogue.fused
        with torch.device("meta"):
            geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation
            twin = cls(conv.in_channels, conv.out_channels, *geometry, reads, writes, fused, bfloat16)
        twin.panels = pack_float_weight(conv.weight.detach()).data
        twin.round_weight()
        if isinstance(epilogue, Affine):
            twin.scale, twin.bias = epilogue.scale, epilogue.bias
        elif epilogue is not None:
            twin.low, twin.high = epilogue.low, epilogue.high
        return twin

    @property
    def weight(self) -> FloatWeight:
        """The weights with their shape, as :func:`stompp_kernels.ops.conv2d_float` takes them."""
        return FloatWeight(self.panels, (self.out_channels, self.in_channels, *self.kernel_size), self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves floats of any type, in float32, or words; floats come out in the type that the network has."""
        if x.dtype is not torch.float32 and x.is_floating_point():
            x = x.to(torch.float32)
        geometry = self.stride, self.padding, self.dilation
        if not x.is_cpu or self._in_float32:
            y = conv2d_by_torch(x, self._dense_weight(), geometry, *self._epilogue())
        else:
            panels = self._buffers["rounded"]
            if panels is None:
                panels = self._buffers["panels"]
            shape = self.out_channels, self.in_channels, *self.kernel_size
            y = conv2d_float_form(x, panels, shape, geometry, *self._epilogue())
        return y if self.writes == "bits" else self._cast(y)

    def round_weight(self) -> None:
        """Rounds the weights anew, as after they were changed."""
        self.rounded = rounded_panels(self.panels, 2 if self.reads == "bits" else 1) if self.bfloat16 else None

    def _epilogue(self) -> tuple[tuple[Any, ...], bool | None]:
        own, writes = self._buffers, self.writes  # nn.Module's own way to a buffer takes longer
        if writes == "bits":
            return (own["low"], own["high"]), None
        return ((own["scale"], own["bias"]), self.fused) if writes == "affine" else ((), False)

    _dense: tuple[Tensor, Tensor] | None = None  # (panels, the weights that they hold)

    def _dense_weight(self) -> Tensor:
        if torch.compiler.is_compiling():  # which keeps no tensor that a module comes by
            return self.weight.unpacked().contiguous(memory_format=torch.channels_last)
        if self._dense is None or self._dense[0] is not self.panels:
            self._dense = self.panels, self.weight.unpacked().contiguous(memory_format=torch.channels_last)
        return self._dense[1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = (name for name, _ in self.named_buffers(recurse=False) if name != "rounded")
        problems = refused_casts(state_dict, prefix, dict.fromkeys(names, (torch.float32,)))
        args[-1].extend(problems)
        if not problems:
            super()._load_from_state_dict(state_dict, prefix, *args)
            self.round_weight()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dense": None}

    @property
    def nbytes(self) -> int:
        """The bytes of weights and constants in memory."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def extra_repr(self) -> str:
        geometry = f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {geometry}"
        return f"{sizes}, reads {self.reads}, writes {self.writes}{', bfloat16' if self.bfloat16 else ''}"
