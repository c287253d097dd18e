"""What happens in the layers while a network freezes: the gradient blockade, sign flips, saturation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from stompp_kernels.ops import count_frozen, pack_signs
from stompp_kernels.progression.example_run import as_arguments, undisturbed
from stompp_kernels.progression.units import Unit


class Diagnostics:
    """Measures every unit of a progression; a record costs about one evaluation of the probe.

    In a loop of your own::

        diagnostics = Diagnostics(model, progression.units)
        ...
        loss.backward()
        norms = diagnostics.gradient_norms()  # before optimizer.step(): progression.step() may drop gradients
        optimizer.step()
        progression.step()
        print(norms, diagnostics.record(images[:32]))

    Args:
        model: that holds the units, itself, not what torch.compile or DistributedDataParallel made of it.
        units: of a :class:`stompp_kernels.StoMPP`.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit]) -> None:
        self._model, self._units = model, units
        self._signs = [self._pack(unit) for unit in units]

    def gradient_norms(self) -> list[float | None]:
        """Returns the norms of the gradients of each unit's latent weights.

        None where no gradient arrives, and for products of activations, which have no weights.
        """
        gradients = [None if unit.weights is None else unit.weights.weight.grad for unit in self._units]
        norms = iter(
            torch.stack(
                [g.float().norm() for g in gradients if g is not None] or [torch.zeros((), dtype=torch.float32)]
            ).tolist()
        )
        return [None if g is None else next(norms) for g in gradients]

    def record(self, probe: Any) -> dict[str, list[float | None]]:
        """Measures three values of each unit.

        Args:
            probe: inputs of the model, some 32 samples.

        Returns:
            ``frozen``: the frozen fraction of its masks' entries. ``flip_ratio``: the fraction of its latent weights
            whose sign changed since the last record; None where it has none. ``saturation``: the fraction of the
            entries of its activations' inputs that lie outside [-1, 1], in eval mode; None where it owns no activation.
        """
        saturation = self._saturation(probe)
        return {
            "frozen": [unit.frozen_fraction() for unit in self._units],
            "flip_ratio": [self._flip_ratio(index) for index in range(len(self._units))],
            "saturation": [saturation.get(unit.name) for unit in self._units],
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the signs at the last record."""
        return {"signs": self._signs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._signs = [s.to(mine.device) for s, mine in zip(state["signs"], self._signs, strict=True)]

    @staticmethod
    def _pack(unit: Unit) -> Tensor:
        if unit.weights is None:
            return torch.empty(0, dtype=torch.int32)
        return pack_signs(unit.weights.weight.detach().flatten())

    def _flip_ratio(self, index: int) -> float | None:
        layer = self._units[index].weights
        if layer is None:
            return None
        before, now = self._signs[index], self._pack(self._units[index])
        self._signs[index] = now
        return count_frozen(before ^ now) / layer.weight.numel()

    def _saturation(self, probe: Any) -> dict[str, float]:
        args, kwargs = as_arguments(probe)
        found: dict[str, list[Tensor]] = {}
        with ExitStack() as stack:
            stack.enter_context(undisturbed(self._model))
            for unit in self._units:
                for activation in unit.activations:

                    def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = unit.name) -> None:
                        found.setdefault(name, []).append((inputs[0].abs() > 1).flatten())

                    stack.callback(activation.register_forward_pre_hook(note).remove)
            self._model(*args, **kwargs)
        means = [torch.cat(outside).float().mean() for outside in found.values()]
        values = torch.stack(means).tolist() if means else []
        return dict(zip(found, values, strict=True))
