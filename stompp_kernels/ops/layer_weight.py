"""What models ask of a layer's weight beside its values."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor


class LayerWeight:
    """Weights in a kernel's order that answer what models ask of a layer's weight, such as its dtype.

    They are no tensor: a torch function that is given one raises TypeError, and torch's fused kernels, which would read
    the weight past the layer, turn themselves off.

    Attributes:
        data: the weights, opaque.
        shape: logical shape, (N, K) or (O, I/groups, kh, kw).
        dtype: of the floats that the layer writes.

    Example:
        >>> from stompp_kernels.ops.layer_weight import LayerWeight
        >>> isinstance(pack_weight(torch.ones(2, 3)), LayerWeight)
        True
    """

    data: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad = False
    grad = None
    # What an error calls them, and the method that gives floats.
    _held: ClassVar[str]
    _method: ClassVar[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(
            f"{getattr(func, '__name__', func)} must be given floats, got {cls._held}; call its layer, or use its "
            f"{cls._method}()"
        )

    @property
    def device(self) -> torch.device:
        """The device whose kernels read the weights.

        Example:
            >>> pack_weight(torch.ones(2, 3)).device
            device(type='cpu')
        """
        return self.data.device

    @property
    def ndim(self) -> int:
        """The number of logical dimensions, 2 or 4.

        Example:
            >>> pack_weight(torch.ones(2, 3)).ndim
            2
        """
        return len(self.shape)

    def dim(self) -> int:
        """Returns the number of logical dimensions, 2 or 4.

        Example:
            >>> pack_conv_weight(torch.ones(2, 3, 1, 1)).dim()
            4
        """
        return len(self.shape)

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """Returns the logical shape, or one of its sizes.

        Raises:
            IndexError: there is no such dimension.

        Example:
            >>> weight = pack_weight(torch.ones(2, 3))
            >>> weight.size(), weight.size(1)
            ((2, 3), 3)
        """
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Returns the number of weights, not of bytes.

        Example:
            >>> pack_weight(torch.ones(2, 3)).numel()
            6
        """
        return math.prod(self.shape)
