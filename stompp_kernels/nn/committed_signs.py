"""The signs that a layer was committed with, kept apart from its latent weights.

A parameter is in everyone's reach: LBFGS writes those without a gradient too, averages and swaps of weights write all
of them. In the STE-free regime a commitment is for good, so from then on the layer computes from bits of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.nn.masked import Masked
from stompp_kernels.ops import pack_signs, unpack_signs
from stompp_kernels.ops.checks import SHORT_FLOATS


class CommittedSigns(Masked):
    """A masked module whose tensor is the parameter ``weight``, in units of its scale.

    Attributes:
        committed_words: None, or int32 [1, ceil(n/32)]: the signs of the latent weights in row-major order when
            :meth:`hold_signs` was called. Not in the state dict: the latent weights there have these signs.
    """

    weight: nn.Parameter

    def __init__(self, mask_shape: Any, device: Any = None) -> None:
        super().__init__(mask_shape, device)
        # No buffer: averages of a model pair its buffers with those of a copy, which may hold no signs.
        self.committed_words: Tensor | None = None
        self._checked: Any = None

    def _in_units_of_scale(self, values: Tensor | None = None) -> Tensor:
        """Returns the latent weights, or values of their shape, divided by the layer's scale."""
        raise NotImplementedError

    def hold_signs(self) -> None:
        """Keeps the signs of the latent weights, if the layer is committed without a surrogate.

        Not those of weights that FSDP shards: no process has them all.
        """
        if self.cuts_gradient and type(self.weight) is nn.Parameter and not self.weight.is_meta:
            self.committed_words, self._checked = self._sign_words(), self._trace()

    def release_signs(self) -> None:
        """Forgets what :meth:`hold_signs` kept: the latent weights count again."""
        self.committed_words = self._checked = None

    def committed_signs(self) -> Tensor | None:
        """Returns the signs that are held, +-1 of the weight's type and strides; None where none are."""
        if self.committed_words is None or not self.cuts_gradient:
            return None
        signs = unpack_signs(self.committed_words, self.weight.numel(), self.weight.dtype).view(self.weight.shape)
        if self.weight.is_contiguous():
            return signs
        return torch.empty_like(self.weight, requires_grad=False).copy_(signs)

    def restore_signs_(self, thorough: bool = True) -> int:
        """Gives latent weights whose sign changed the one that is held, and returns how many there were.

        Args:
            thorough: compare all signs. False: only if the parameter's memory or version changed; writes through
                ``weight.data`` change neither.
        """
        if self.committed_words is None or not self.cuts_gradient or (not thorough and self._checked == self._trace()):
            return 0
        changed = 0
        if not torch.equal(self._sign_words(), self.committed_words):
            signs = self.committed_signs()
            assert signs is not None
            with torch.no_grad():
                wrong = (self._in_units_of_scale() < 0) != (signs < 0)
                # The scale times a small number, so that u is not rounded to 0. NaN stays NaN.
                least = torch.finfo(signs.dtype).eps / self._in_units_of_scale(signs).abs()
                self.weight.copy_(torch.where(wrong, signs * torch.maximum(self.weight.abs(), least), self.weight))
            changed = int(wrong.sum())
        self._checked = self._trace()
        return changed

    def _sign_words(self) -> Tensor:
        u = self._in_units_of_scale().detach().reshape(1, -1)
        return pack_signs(u if u.dtype in SHORT_FLOATS else u.sign().float())

    def _trace(self) -> tuple[int, int, int] | None:
        """Returns what a write to the parameter usually changes."""
        if self.weight.is_inference():
            return None
        return id(self.weight), self.weight._version, self.weight.data_ptr()

    def _apply(self, fn: Any, recurse: bool = True) -> CommittedSigns:
        super()._apply(fn, recurse)
        if self.committed_words is not None:
            self.committed_words = self.committed_words.to(self.weight.device)
        return self

    def commit(self) -> None:
        super().commit()
        self.release_signs()

    def soften(self) -> None:
        super().soften()
        self.release_signs()

    def set_surrogate(self, surrogate: str) -> None:
        if surrogate != self.surrogate:
            self.release_signs()
        super().set_surrogate(surrogate)

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        self.release_signs()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "weight" in state_dict:
            self.release_signs()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.restore_signs_()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": None}
