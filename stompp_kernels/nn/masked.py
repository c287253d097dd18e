"""What a progressive weight and a progressive activation share: a mask of bits, a stage, a surrogate."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.nn.clip import clip
from stompp_kernels.nn.state import refused_casts
from stompp_kernels.ops import count_frozen, full_mask, progressive, refresh_mask_
from stompp_kernels.ops.checks import SURROGATES, check_choice
from stompp_kernels.ops.reference import words_for


class Stage(enum.IntEnum):
    """Says how far a tensor is: clipped everywhere, partly frozen, or committed to hard signs.

    Example:
        >>> layer = sk.nn.BinaryLinear(8, 4)
        >>> layer.stage
        <Stage.SOFT: 0>
        >>> layer.commit()
        >>> layer.stage is sk.nn.Stage.BINARY
        True
    """

    SOFT = 0
    PARTIAL = 1
    BINARY = 2


class Masked(nn.Module):
    """A module with one progressive tensor.

    Attributes:
        mask_words: int32 buffer, one bit per entry, 1 = frozen; empty until the tensor's shape is known.
        mask_shape: shape of the tensor that the mask covers, or None while unknown.
        started, committed: whether the tensor left :attr:`Stage.SOFT`, and whether it is :attr:`Stage.BINARY`; saved in
            the state dict. Compiled code is compiled again when ``committed`` changes, not when ``started`` does.
        surrogate: gradient of frozen entries; "none" is the STE-free regime.
    """

    mask_words: Tensor

    def __init__(self, mask_shape: Sequence[int] | None, device: Any = None) -> None:
        super().__init__()
        self.started = self.committed = False
        self.surrogate = "none"
        self.mask_shape: tuple[int, ...] | None = None
        self.register_buffer("mask_words", torch.empty(0, dtype=torch.int32, device=device))
        if mask_shape is not None:
            self.set_mask_shape(mask_shape)

    @property
    def stage(self) -> Stage:
        """The stage of the tensor, see :class:`Stage`."""
        if self.committed:
            return Stage.BINARY
        return Stage.PARTIAL if self.started else Stage.SOFT

    @stage.setter
    def stage(self, stage: Stage) -> None:
        self.started, self.committed = stage is not Stage.SOFT, stage is Stage.BINARY

    @property
    def cuts_gradient(self) -> bool:
        """Whether the tensor is committed without a surrogate, so that no gradient passes."""
        return self.committed and self.surrogate == "none"

    @property
    def mask_numel(self) -> int:
        """The number of entries of the mask; 0 while its shape is unknown."""
        return 0 if self.mask_shape is None else torch.Size(self.mask_shape).numel()

    def set_mask_shape(self, shape: Sequence[int]) -> None:
        """Makes room for a mask of this shape, soft everywhere; keeps the mask where the shape stays."""
        if self.mask_shape == tuple(shape):
            return
        self.mask_shape = tuple(shape)
        self.mask_words = torch.zeros(words_for(self.mask_numel), dtype=torch.int32, device=self.mask_words.device)

    def set_surrogate(self, surrogate: str) -> None:
        """Chooses the gradient of frozen entries: "identity", "clip", "approx_sign", or "none" for the STE-free regime.

        Raises:
            ValueError: the name is none of these.
        """
        check_choice("surrogate", surrogate, SURROGATES)
        self.surrogate = surrogate

    def soften(self) -> None:
        """Makes every entry soft again, as at the start.

        Parameters that a :class:`stompp_kernels.StoMPP` froze when it was committed learn again from that progression's
        next step on.
        """
        self.stage = Stage.SOFT
        self.mask_words.zero_()

    def refresh(self, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
        """Refreshes the mask once, towards a frozen fraction of p; see :func:`stompp_kernels.ops.refresh_mask_`.

        Raises:
            ValueError: the mask has no shape yet.
        """
        if self.mask_shape is None:
            raise ValueError("the mask has no shape yet: run the model once through sk.prepare or sk.link")
        self.stage = Stage.PARTIAL
        refresh_mask_(self.mask_words, self.mask_numel, p, r, seed, tensor_id, step)

    def commit(self) -> None:
        """Freezes every entry, for good."""
        self.stage = Stage.BINARY
        self.mask_words.copy_(full_mask(self.mask_numel, self.mask_words.device))

    def frozen(self) -> int:
        """Counts the frozen entries."""
        if self.stage is Stage.PARTIAL:
            return count_frozen(self.mask_words)
        return self.mask_numel if self.stage is Stage.BINARY else 0

    def apply_progressive(self, u: Tensor, batch_shared: bool) -> Tensor:
        """Computes u' at the present stage, with the regime's gradient.

        Committed and STE-free, the result is cut from autograd.
        """
        if self.committed:
            return progressive(u.detach() if self.cuts_gradient else u, None, self.surrogate)
        # Compiled code reads a soft tensor's mask too, all zero, and not `started`, so that it outlasts the window.
        shape = u.shape[1:] if batch_shared else u.shape
        if (torch.compiler.is_compiling() and tuple(shape) == self.mask_shape) or self.started:
            return progressive(u, self.mask_words, self.surrogate, batch_shared)
        return clip(u)

    def get_extra_state(self) -> Tensor:
        shape = () if self.mask_shape is None else self.mask_shape
        return torch.tensor([int(self.stage), SURROGATES.index(self.surrogate), *shape])

    def set_extra_state(self, state: Tensor) -> None:
        stage, surrogate, *shape = state.tolist()
        self.stage = Stage(stage)
        self.surrogate = SURROGATES[surrogate]
        self.mask_shape = tuple(shape) or None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        integers = {"mask_words": (torch.int32,), "draw": (torch.int64,), "_extra_state": (torch.int64,)}
        problems = refused_casts(state_dict, prefix, integers)
        if problems:
            args[-1].extend(problems)
            return
        saved = state_dict.get(prefix + "mask_words")
        if saved is not None and saved.shape != self.mask_words.shape:
            self.mask_words = torch.empty_like(saved, device=self.mask_words.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def copy_masks(source: nn.Module, target: nn.Module) -> None:
    """Gives ``target``, a copy of ``source``, the stages, surrogates and masks that ``source`` has now.

    An average of weights needs it after each update: it must not average masks, and knows nothing of stages.

    Raises:
        ValueError: ``target`` has another module, or a mask of another shape, in a place of ``source``.

    Example:
        >>> model = nn.Sequential(sk.nn.BinaryLinear(8, 4))
        >>> average = torch.optim.swa_utils.AveragedModel(model)
        >>> model[0].commit()
        >>> average.update_parameters(model)
        >>> sk.nn.copy_masks(model, average.module)
        >>> average.module[0].frozen()
        32
    """
    targets = dict(target.named_modules())
    for name, masked in source.named_modules():
        if isinstance(masked, Masked):
            other = targets.get(name)
            buffers = _own_buffers(masked)
            others = {} if other is None else _own_buffers(other)
            if {key: b.shape for key, b in buffers.items()} != {key: b.shape for key, b in others.items()}:
                raise ValueError(f"target must be a copy of source, got another module at {name!r}")
            assert isinstance(other, Masked)
            other.set_extra_state(masked.get_extra_state())
            for key, buffer in buffers.items():
                others[key].copy_(buffer)


def _own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that a state dict of this module alone holds."""
    kept = module._non_persistent_buffers_set
    return {name: buffer for name, buffer in module.named_buffers(recurse=False) if name not in kept}
