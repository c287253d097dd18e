"""Attention of a packed network that multiplies bfloat16 where the processor has instructions for it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stompp_kernels import native
from stompp_kernels.nn.bfloat16 import MayMultiplyBFloat16
from stompp_kernels.ops.gradients import gradient_wanted

CHILD = "scaled_dot_product_attention"  # of a module of transformers that attends
_IN_TRANSFORMERS = "stompp_bfloat16"  # among its attention functions
_LEAST = 96  # queries, and keys: with fewer, to round them takes as long as the products save


class BFloat16Attention(nn.Module, MayMultiplyBFloat16):
    """Computes torch's scaled_dot_product_attention, for inference, in bfloat16 where the processor multiplies it.

    Queries, keys, values, the softmax's numerators and the result are rounded to bfloat16; scores, sums and a mask of
    floats are float32. It is torch's function in float32 where the processor has no such instructions, with fewer than
    96 queries or keys, with dropout, where queries, keys and values have different numbers of heads or channels or are
    not float32 on the CPU in four dimensions, and where a gradient is wanted.

    Example:
        >>> x = torch.randn(1, 2, 128, 16)
        >>> y = nn.functional.scaled_dot_product_attention(x, x, x)
        >>> torch.allclose(sk.nn.BFloat16Attention()(x, x, x), y, atol=0.05)
        True
    """

    bfloat16 = True
    rounded = None
    _is_in_transformers = False

    def __init__(self) -> None:
        super().__init__()
        self._multiplies = native.multiplies_bfloat16()  # for compilers, which cannot ask the library

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Computes attention [B, heads, L, C]; the arguments are those of torch's function."""
        settings = attn_mask, dropout_p, is_causal
        if dropout_p != 0 or not self._can_round(query, key, value, attn_mask):
            return F.scaled_dot_product_attention(query, key, value, *settings, scale=scale, enable_gqa=enable_gqa)
        query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, *settings, scale=scale).to(torch.float32)

    @property
    def arithmetic(self) -> str:
        """What is multiplied on the CPU now, in words."""
        return "bfloat16" if native.multiplies_bfloat16() else "float32"

    def _can_round(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        if self._in_float32 or not self._multiplies or torch.is_autocast_enabled("cpu"):
            return False
        if not torch.compiler.is_compiling() and not native.multiplies_bfloat16():
            return False
        tensors = query, key, value
        if any(x.device.type != "cpu" or x.dtype is not torch.float32 or x.dim() != 4 for x in tensors):
            return False
        if mask is not None and (mask.dim() not in (2, 4) or mask.dtype not in (torch.float32, torch.bool)):
            return False
        batch, heads, queries, channels = query.shape
        keys = key.shape[2]
        if key.shape != (batch, heads, keys, channels) or value.shape != key.shape or query.numel() == 0:
            return False
        # A symbol, as a compiler has it, stands for any number, and to compare it would fix it.
        few = any(isinstance(size, int) and size < _LEAST for size in (queries, keys))
        return not few and not gradient_wanted(query, key, value, mask)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._is_in_transformers:
            _register()


def attends_in_transformers(module: nn.Module) -> bool:
    """Returns whether a module of transformers asks for its attention function, and has torch's one.

    A few ask whether it is torch's, and must keep it.
    """
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    asks = code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and "sdpa" not in repr(code.co_consts)
    return asks and getattr(getattr(module, "config", None), "_attn_implementation", None) == "sdpa"


def make_attention_fast(module: nn.Module) -> None:
    """Gives a module of transformers that :func:`attends_in_transformers` a :class:`BFloat16Attention` to call."""
    _register()
    # Its own config: who makes the masks must still see torch's function.
    config = copy.deepcopy(module.config)
    config._attn_implementation = _IN_TRANSFORMERS
    module.config = config
    child = BFloat16Attention()
    child._is_in_transformers = True
    module.add_module(CHILD, child)


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_IN_TRANSFORMERS, _attend)


def _attend(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Does what transformers does around torch's function, with the module's own in its place."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with _InsteadOfTorch(module.get_submodule(CHILD)):
        return sdpa_attention_forward(module, *args, **kwargs)


class _InsteadOfTorch(TorchFunctionMode):
    """Calls a module in the place of torch's scaled_dot_product_attention inside a ``with`` block of one thread."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
