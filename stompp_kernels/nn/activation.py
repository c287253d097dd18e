"""The activation that takes a ReLU's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stompp_kernels.nn.masked import Masked, Stage
from stompp_kernels.ops import draw_state, progressive_drawn

# What to do where training's inputs have another size than the masks.
OTHER_SIZES = (
    "activation masks have the sizes of the example_inputs of sk.prepare (or sk.link). Prepare the model again with "
    'example_inputs of the size that you train with, or give sk.StoMPP activation_masks="per_element", which takes any '
    "size. Once it is committed the model takes any size too"
)


class ProgressiveActivation(Masked):
    """Clips x to [-1, 1] and gradually replaces entries by sign(x).

    The mask has the shape of one sample and is shared by the batch, or with :meth:`draw_per_element` every entry of a
    batch is drawn by itself. Everything after the activation, a shortcut too, sees the committed values.

    Args:
        mask_shape: shape of the input without its batch dimension; None: taken by ``sk.prepare`` or ``sk.link``.

    Attributes:
        name: its qualified name in the model that ``sk.prepare`` or ``sk.link`` ran, for errors; "" before.
        other_shape: the shape of an input whose samples a mask would not fit, seen in training while no mask was in use
            yet; None where there was none. A progression warns of it, and sets it back.
        draw: None, or with :meth:`draw_per_element` the int64 [4] buffer that masks are drawn from, see
            :func:`stompp_kernels.ops.draw_state`.

    Shape:
        Any with the batch first, to the same; any floating-point dtype.

    Example:
        >>> activation = sk.nn.ProgressiveActivation([3])
        >>> x = torch.tensor([[-2.0, 0.5, 0.0]])
        >>> activation(x).tolist()
        [[-1.0, 0.5, 0.0]]
        >>> activation.commit()
        >>> activation(x).tolist()
        [[-1.0, 1.0, 1.0]]
    """

    draw: Tensor | None

    def __init__(self, mask_shape: Sequence[int] | None = None, device: Any = None) -> None:
        super().__init__(mask_shape, device)
        self.name = ""
        self.other_shape: tuple[int, ...] | None = None
        self.register_buffer("draw", None)

    def draw_per_element(self, enabled: bool = True) -> None:
        """Chooses a mask that is drawn anew for each entry of each batch, or one that samples share and refresh.

        The drawn one is Bernoulli(p), with p the frozen fraction that the window heads for: a batch of new samples has
        no earlier mask to refresh. It is stored nowhere.
        """
        if enabled != (self.draw is not None):
            self.draw = torch.zeros(4, dtype=torch.int64, device=self.mask_words.device) if enabled else None

    def refresh(self, p: float, r: float, seed: int, tensor_id: int, step: int) -> None:
        """Refreshes the shared mask once, or sets the probability that masks are drawn with.

        The arguments are those of :func:`stompp_kernels.ops.refresh_mask_`; a drawn mask has no use for ``r``.
        """
        if self.draw is None:
            super().refresh(p, r, seed, tensor_id, step)
        else:
            self.stage = Stage.PARTIAL
            self.draw.copy_(draw_state(p, seed, tensor_id, step))

    def soften(self) -> None:
        """Makes every entry soft again, as at the start."""
        super().soften()
        if self.draw is not None:
            self.draw.zero_()

    def frozen(self) -> int:
        """Counts the frozen entries of a sample; for drawn masks it is the expected number."""
        if self.stage is Stage.PARTIAL and self.draw is not None:
            return round(self.mask_numel * int(self.draw[3]) / 2**32)
        return super().frozen()

    def apply_progressive(self, u: Tensor, batch_shared: bool) -> Tensor:
        """Computes u' at the present stage, with the mask that samples share or with one that is drawn."""
        # Compiled code draws while the activation is soft too, with p = 0, as it reads a soft mask.
        if self.draw is not None and not self.committed and (torch.compiler.is_compiling() or self.started):
            return progressive_drawn(u, self.draw, self.surrogate)
        return super().apply_progressive(u, batch_shared)

    def forward(self, x: Tensor) -> Tensor:
        """Clips, partly freezes or binarizes ``x``, as the stage says.

        Args:
            x: floats of any type, samples of ``mask_shape`` behind the batch dimension. While no shared mask is in use,
                samples may have any shape.

        Raises:
            ValueError: a shared mask is partly frozen and ``x`` has samples of another shape.
        """
        # In this order: compiled code then reads the stage for inputs of another shape only.
        if tuple(x.shape[1:]) != self.mask_shape and self.draw is None and not self.committed:
            if self.started:
                raise ValueError(f"{self.shape_problem(x.shape)}, got {list(x.shape)}: {OTHER_SIZES}")
            if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self.other_shape = tuple(x.shape)
        return self.apply_progressive(x, batch_shared=True)

    def shape_problem(self, shape: Sequence[int]) -> str:
        """Says which shape inputs must have while partly frozen; ``shape`` is that of another one."""
        batch = shape[0] if shape else "batch"
        wanted = ", ".join(map(str, (batch, *(self.mask_shape or ()))))
        which = f"the input of activation {self.name!r}" if self.name else "x, the input of a ProgressiveActivation,"
        return f"{which} must have shape [{wanted}] while it is partly frozen"

    def extra_repr(self) -> str:
        per_element = ", drawn per element" if self.draw is not None else ""
        return f"mask_shape={self.mask_shape}, stage={self.stage.name}, surrogate={self.surrogate!r}{per_element}"
