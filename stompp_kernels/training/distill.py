"""A loss that learns from a teacher: its logits, and features of named layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Distillation:
    """Adds to a loss how far a student is from its teacher, on the same inputs (Hinton et al. 2015, arXiv 1503.02531).

    A hook runs the teacher whenever the student runs in training mode. The loss is

        (1 - weight) * loss(output, target) + weight * T^2 * KL(teacher's softmax(logits / T), the student's)
        + feature_weight * mean over named layers of the distance of their features

    Features [B, C, H, W] are compared by where they are large, the mean over channels of their squares (Zagoruyko &
    Komodakis 2017, arXiv 1612.03928), so that widths may differ; others as they are. Both are scaled to norm 1.

    Args:
        student: the model that is trained, itself, not what torch.compile or DistributedDataParallel made of it.
        teacher: any module that takes the student's inputs; it is set to eval mode and gets no gradients.
        loss: of the student's output and the target.
        weight: of the teacher's logits, in [0, 1].
        temperature: T, positive.
        features: names of the student's layers, each with that of the teacher's layer to follow.
        feature_weight: of the features; 0 leaves them out.

    Raises:
        ValueError: a number is out of range, or a model has no layer of a name.

    Example:
        >>> x, y = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
        >>> teacher = sk.models.MLP(widths=(64, 64))
        >>> student, _ = sk.prepare(sk.models.MLP(widths=(32, 32)), x)
        >>> loss = sk.training.Distillation(student, teacher, weight=0.9, temperature=4.0)
        >>> loss(student(x), y).backward()
        >>> loss.remove()  # the hooks, before the student is converted
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
        weight: float = 0.9,
        temperature: float = 1.0,
        features: Mapping[str, str] | None = None,
        feature_weight: float = 1.0,
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not feature_weight >= 0:
            raise ValueError(f"feature_weight must not be negative, got {feature_weight}")
        self.loss, self.weight, self.temperature, self.feature_weight = loss, weight, temperature, feature_weight
        self.features = dict(features or {}) if feature_weight else {}
        self.teacher = teacher.eval().requires_grad_(False)
        self._logits: Tensor | None = None
        self._seen: dict[tuple[str, str], Tensor] = {}
        layers = [("student", student, name) for name in self.features]
        layers += [("teacher", teacher, name) for name in dict.fromkeys(self.features.values())]
        found = [(role, name, _layer(role, model, name)) for role, model, name in layers]
        self._hooks = [student.register_forward_pre_hook(self._run_teacher, with_kwargs=True)]
        for role, name, layer in found:
            self._hooks.append(layer.register_forward_hook(self._noting(role, name)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Distillation:
        """Returns itself: a copy of the student, as for an average, is no reason to copy the teacher."""
        return self

    def remove(self) -> None:
        """Takes the hooks from both models."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _run_teacher(self, student: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if student.training:
            output = self.teacher(*args, **kwargs)
            self._logits = getattr(output, "logits", output).float()

    def _noting(self, role: str, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[role, name] = output

        return note

    def __call__(self, output: Any, target: Any) -> Tensor:
        """Computes the loss of an output that the student gave last.

        Raises:
            ValueError: shapes of logits or features differ.
            RuntimeError: the student did not run in training mode since the last call.
        """
        if self._logits is None:
            raise RuntimeError(
                "the student must run in training mode before the loss is taken: the teacher did not run"
            )
        logits, expected = getattr(output, "logits", output).float(), self._logits
        if logits.shape != expected.shape:
            raise ValueError(f"the teacher's logits must have shape {list(logits.shape)}, got {list(expected.shape)}")
        soft = F.kl_div(
            F.log_softmax(logits / self.temperature, 1),
            F.log_softmax(expected / self.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        total = self.weight * self.temperature**2 * soft
        if self.weight < 1:
            total = total + (1 - self.weight) * self.loss(output, target)
        distances = [self._distance(own, other) for own, other in self.features.items()]
        if distances:
            total = total + self.feature_weight * torch.stack(distances).mean()
        self._logits = None
        self._seen.clear()
        return total

    def _distance(self, own: str, other: str) -> Tensor:
        """The mean squared distance of two layers' features over the batch."""
        student, teacher = _direction(self._seen["student", own]), _direction(self._seen["teacher", other])
        if student.shape != teacher.shape:
            raise ValueError(
                f"features of {own!r} and of the teacher's {other!r} must agree but for channels of images, got "
                f"{list(student.shape[1:])} and {list(teacher.shape[1:])} values a sample"
            )
        return (student - teacher).square().sum(1).mean()


def _layer(role: str, model: nn.Module, name: str) -> nn.Module:
    layers = dict(model.named_modules())
    if name not in layers:
        raise ValueError(f"features must name layers of the {role}, which has no {name!r}")
    return layers[name]


def _direction(features: Tensor) -> Tensor:
    if features.dim() == 4:
        features = features.float().square().mean(1)
    return F.normalize(features.float().flatten(1), dim=1)
