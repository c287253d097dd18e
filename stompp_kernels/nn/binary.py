"""Layers with progressive weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stompp_kernels.nn.activation import ProgressiveActivation
from stompp_kernels.nn.committed_signs import CommittedSigns
from stompp_kernels.nn.functional import conv2d, packed_conv2d, packed_linear, packed_path_allowed
from stompp_kernels.ops import PackedWeight, pack_conv_weight, pack_weight
from stompp_kernels.ops.checks import check_choice, pair
from stompp_kernels.ops.geometry import Geometry
from stompp_kernels.ops.gradients import transforms_are_active

# Latent weights start of order 1: with a usual Kaiming start |w| is far below 1, and a frozen entry would outweigh
# its soft neighbours by 10 to 30 times. BatchNorm absorbs the scale.
LATENT_STD = 0.3


class BinaryLayer(CommittedSigns):
    """Base of the layers with progressive weights: latent weights, a mask, and perhaps an activation on the input.

    Attributes:
        weight: the latent weights, a parameter.
        bias: a parameter [out], or None.
        alpha: None, or float [out] or [1]: the layer computes with u = weight / alpha and scales its output by alpha.
        input_scale: None, or float [1]: its own activation is given input / input_scale, and it scales its output by
            input_scale.
        input_activation: its own ProgressiveActivation, or None where the input is binarized upstream, or not at all.
        execution_index: place in the order of execution, set by ``sk.prepare`` or ``sk.link``.

    Example:
        >>> model, _ = sk.prepare(sk.models.MLP(widths=(32, 32, 32)), torch.randn(2, 1, 8, 8))
        >>> [name for name, module in model.named_modules() if isinstance(module, sk.nn.BinaryLayer)]
        ['4', '7']
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    alpha: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        weight_shape: Sequence[int],
        bias: bool,
        binarize_input: bool,
        alpha: Tensor | None,
        input_scale: Tensor | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(weight_shape, device)
        self.weight = nn.Parameter(torch.empty(tuple(weight_shape), device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=LATENT_STD)
        self.bias = nn.Parameter(torch.zeros(weight_shape[0], device=device, dtype=dtype)) if bias else None
        if alpha is not None and tuple(alpha.shape) not in ((1,), (weight_shape[0],)):
            raise ValueError(f"alpha must have shape [1] or [{weight_shape[0]}], got {list(alpha.shape)}")
        if alpha is not None and not bool((alpha > 0).all()):
            raise ValueError(f"alpha must be positive, got a smallest value of {float(alpha.min())}")
        if input_scale is not None and not binarize_input:
            raise ValueError("input_scale needs binarize_input=True: it scales the layer's own activation")
        if input_scale is not None and (tuple(input_scale.shape) != (1,) or not float(input_scale) > 0):
            raise ValueError(f"input_scale must be one positive number, shape [1], got {input_scale}")
        self.register_buffer("alpha", alpha)
        self.register_buffer("input_scale", input_scale)
        self.input_activation = ProgressiveActivation(device=device) if binarize_input else None
        self.execution_index: int | None = None
        # The activations upstream whose signs arrive here; in a tuple, so that they do not become submodules.
        self._sources: tuple[ProgressiveActivation, ...] = ()
        self._dropout_between = False
        self._tied: tuple[BinaryLayer, ...] = ()
        self._leads_tied = False
        self._packed: tuple[nn.Parameter, Any, PackedWeight] | None = None

    @property
    def activation(self) -> ProgressiveActivation | None:
        """The activation that feeds this layer, its own or the one upstream, or None."""
        if self.input_activation is not None:
            return self.input_activation
        return self._sources[0] if self._sources else None

    def set_source(self, activation: ProgressiveActivation | None, dropout_between: bool = False) -> None:
        """Names the activation upstream whose output reaches this layer with its signs intact.

        Args:
            activation: the activation, or None where no such output arrives.
            dropout_between: dropout lies in between. It leaves signs intact in eval mode only, so in training mode the
                layer then computes in float.
        """
        self._sources = () if activation is None else (activation,)
        self._dropout_between = dropout_between

    def refresh(self, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
        """Refreshes the mask once; of tied layers the first to be refreshed leads, see :func:`tie_weights`.

        The arguments are those of :func:`stompp_kernels.ops.refresh_mask_`.
        """
        if any(other._leads_tied or other.committed for other in self._tied):
            return
        super().refresh(p, r, seed, tensor_id, step)
        self._leads_tied = True
        for other in self._tied:
            other.stage = self.stage
            other.mask_words.copy_(self.mask_words)

    def commit(self) -> None:
        """Freezes every weight for good, and those of the layers that share them."""
        super().commit()
        for other in self._tied:
            CommittedSigns.commit(other)

    def soften(self) -> None:
        """Makes every weight soft again, and those of the layers that share them."""
        for layer in (self, *self._tied):
            layer._leads_tied = False
            CommittedSigns.soften(layer)

    @property
    def input_is_binary(self) -> bool:
        """Whether the layer's input is committed to +-1."""
        return self.activation is not None and self.activation.committed

    def latent(self) -> Tensor:
        """Returns u, the weights in units of alpha; where the committed signs are held it returns those."""
        signs = self.committed_signs()
        return self._in_units_of_scale() if signs is None else signs

    def _in_units_of_scale(self, values: Tensor | None = None) -> Tensor:
        values = self.weight if values is None else values
        return values if self.alpha is None else values / self._per_output(self.alpha, self.weight.dim())

    def output_scale(self) -> Tensor | None:
        """Returns the factor of the product of u' and the activated input: None, or float [out] or [1]."""
        if self.input_scale is None:
            return self.alpha
        return self.input_scale if self.alpha is None else self.alpha * self.input_scale

    def _activated(self, x: Tensor) -> Tensor:
        """Returns the input as the product takes it."""
        if self.input_activation is None:
            return x
        return self.input_activation(x if self.input_scale is None else x / self.input_scale.to(x.dtype))

    def clip_latent_(self) -> None:
        """Clips the latent weights to [-1, 1], in units of alpha (BinaryConnect, Courbariaux et al. 2015)."""
        with torch.no_grad():
            if self.alpha is None:
                self.weight.clamp_(-1, 1)
            else:
                bound = _operand_of(self.weight, self._per_output(self.alpha, self.weight.dim()))
                self.weight.clamp_(-bound, bound)

    @staticmethod
    def _per_output(values: Tensor, dims: int) -> Tensor:
        return values.reshape(-1, *(1,) * (dims - 1))

    def _finish(self, y: Tensor, dims: int) -> Tensor:
        """Applies scale and bias to a product y whose outputs lie `dims` dimensions from the end."""
        scale = self.output_scale()
        if scale is not None:
            y = y * self._per_output(scale.to(y.dtype), dims)
        return y if self.bias is None else y + self._per_output(self.bias.to(y.dtype), dims)

    def _pack(self, w: Tensor) -> PackedWeight:
        raise NotImplementedError

    def packed_weight(self) -> PackedWeight:
        """Returns the packed signs of the weights, which are kept while nothing can have changed them.

        Fused optimizers and changes through ``weight.data`` leave no trace in a tensor's version. So weights that learn
        are packed anew in every training step, and what is kept is dropped by them and by ``train()`` and ``eval()``.
        Nothing is kept of weights that FSDP gathers for each run: it writes them into the same tensor, without a trace;
        nor of those that torch.func puts in their place for one call.
        """
        gathered = getattr(self, "_is_fsdp_managed_module", False)
        if torch.compiler.is_compiling() or self.weight.is_inference() or gathered or transforms_are_active():
            return self._pack(self.latent().detach())
        key = (self.weight._version, self.weight.data_ptr(), self.weight.device)
        kept = self._packed
        if kept is None or kept[0] is not self.weight or kept[1] != key or (self.training and self.surrogate != "none"):
            self._packed = kept = (self.weight, key, self._pack(self.latent().detach()))
        return kept[2]

    def train(self, mode: bool = True) -> BinaryLayer:
        """Sets training or evaluation mode, as nn.Module does, and drops the packed weight that was kept."""
        self._packed = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None}

    def _float_product(self, x: Tensor, w: Tensor) -> Tensor:
        raise NotImplementedError

    def _packed_product(self, x: Tensor, w: Tensor | None, packed: PackedWeight | None) -> Tensor:
        raise NotImplementedError

    def _product(self, x: Tensor) -> Tensor:
        """Multiplies by u' on the path of the present stage: soft and partial in float, binary on bits."""
        exact = not (self._dropout_between and self.training)
        packed = self.committed and self.input_is_binary and exact and packed_path_allowed(x)
        weight_learns = self.surrogate != "none" and self.weight.requires_grad
        if packed and not (torch.is_grad_enabled() and (x.requires_grad or weight_learns)):
            return self._packed_product(x, None, self.packed_weight())
        if torch.is_grad_enabled() and weight_learns:
            self._packed = None  # an optimizer's step may follow
        w = self.apply_progressive(self.latent(), batch_shared=False).to(x.dtype)
        return self._packed_product(x, w, None) if packed else self._float_product(x, w)


def tie_weights(layers: Sequence[BinaryLayer]) -> None:
    """Gives layers of one shape the first one's latent weight, and masks that are always the same.

    A committed weight must not move, so the layers are committed together: in the window that opens first.

    Raises:
        ValueError: the weights have different shapes.
    """
    for layer in layers:
        if layer.weight.shape != layers[0].weight.shape:
            shapes = [list(other.weight.shape) for other in layers]
            raise ValueError(f"layers that share a weight must have weights of one shape, got {shapes}")
        layer.weight = layers[0].weight
        layer._tied = tuple(other for other in layers if other is not layer)


def _operand_of(weight: Tensor, values: Tensor) -> Tensor:
    """Returns ``values`` for an operation with ``weight``: where that is a DTensor, one too, the same on every rank."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or not isinstance(weight, distributed.DTensor):
        return values
    mesh = weight.device_mesh
    return distributed.DTensor.from_local(values, mesh, [distributed.Replicate()] * mesh.ndim)


class BinaryLinear(BinaryLayer):
    """Linear layer with progressive weights.

    Args:
        in_features, out_features: K and N.
        bias: add a learnable bias.
        binarize_input: put a :class:`ProgressiveActivation` of its own on the input.
        alpha: scale per output [N] or tensor [1], or None.
        input_scale: scale of the input [1], or None; with ``binarize_input`` only.

    Shape:
        [..., K] to [..., N]. With ``binarize_input`` or a source the first dimension is the batch.

    Raises:
        ValueError: a size is below 1, or a scale has another shape, is not positive or has no use.

    Example:
        >>> layer = sk.nn.BinaryLinear(64, 10)
        >>> layer(torch.randn(4, 64)).shape
        torch.Size([4, 10])
        >>> layer.commit()
        >>> layer
        BinaryLinear(64, 10, bias=False, stage=BINARY)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        binarize_input: bool = False,
        alpha: Tensor | None = None,
        input_scale: Tensor | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        super().__init__((out_features, in_features), bias, binarize_input, alpha, input_scale, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies floats [..., K] by u' and returns floats [..., N] of their type, scaled and with the bias."""
        return self._finish(self._product(self._activated(x)), 1)

    def _float_product(self, x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w)

    def _packed_product(self, x: Tensor, w: Tensor | None, packed: PackedWeight | None) -> Tensor:
        return packed_linear(x, w, packed)

    def _pack(self, w: Tensor) -> PackedWeight:
        return pack_weight(w)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, stage={self.stage.name}"


class BinaryConv2d(BinaryLayer):
    """2-D convolution with progressive weights.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in torch.nn.Conv2d, with
            numeric padding.
        padding_value: 0 as torch, or +1 or -1: a committed activation has no zero, and padding with a sign spares
            the border correction.
        binarize_input: put a :class:`ProgressiveActivation` of its own on the input.
        alpha: scale per output channel [O] or tensor [1], or None.
        input_scale: scale of the input [1], or None; with ``binarize_input`` only.

    Shape:
        [B, C, H, W] to [B, O, OH, OW].

    Example:
        >>> layer = sk.nn.BinaryConv2d(8, 16, 3, padding=1, binarize_input=True)
        >>> layer(torch.randn(2, 8, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_value: int = 0,
        binarize_input: bool = False,
        alpha: Tensor | None = None,
        input_scale: Tensor | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if math.gcd(in_channels, groups) != groups or math.gcd(out_channels, groups) != groups:
            raise ValueError(
                f"groups must divide in_channels {in_channels} and out_channels {out_channels}, got {groups}"
            )
        check_choice("padding_value", padding_value, (0, 1, -1))
        kernel: tuple[int, ...] = pair("kernel_size", kernel_size, 1)  # of fewer numbers in a convolution of sequences
        weight_shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(weight_shape, bias, binarize_input, alpha, input_scale, device, dtype)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride: tuple[int, ...] = pair("stride", stride, 1)
        self.padding: tuple[int, ...] = pair("padding", padding, 0)
        self.dilation: tuple[int, ...] = pair("dilation", dilation, 1)
        self.groups, self.padding_value = groups, padding_value

    def forward(self, x: Tensor) -> Tensor:
        """Convolves floats [B, C, H, W] with u' and returns floats [B, O, OH, OW] of their type, scaled, with the bias.

        Raises:
            ValueError: ``x`` does not have four dimensions.
        """
        if x.dim() != 4:
            raise ValueError(f"x must be [B, C, H, W], got shape {list(x.shape)}")
        return self._finish(self._product(self._activated(x)), 3)

    @property
    def padding_mode(self) -> str:
        """The mode in the terms of nn.Conv2d, "zeros", or "constant" where the layer pads with a sign."""
        return "zeros" if self.padding_value == 0 else "constant"

    @property
    def geometry(self) -> Geometry:
        """The numbers of the two-dimensional convolution that runs."""
        return Geometry(self.stride, self.padding, self.dilation, self.groups, self.padding_value)

    def _float_product(self, x: Tensor, w: Tensor) -> Tensor:
        return conv2d(x, w, self.geometry)

    def _packed_product(self, x: Tensor, w: Tensor | None, packed: PackedWeight | None) -> Tensor:
        return packed_conv2d(x, w, packed, self.geometry)

    def _pack(self, w: Tensor) -> PackedWeight:
        return pack_conv_weight(w, self.groups)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, stage={self.stage.name}"
        )
