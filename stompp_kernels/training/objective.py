"""What the steps of a recipe minimize: its loss, on batches that may be mixed, beside what a teacher says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stompp_kernels.named import is_named, named_function
from stompp_kernels.training.data import Data, Inputs
from stompp_kernels.training.distill import Distillation
from stompp_kernels.training.recipe import LossRecipe, Recipe, expand
from stompp_kernels.training.trained import load_network


class Objective:
    """The loss of a recipe.

    Args:
        model: that is trained; a teacher's hooks go onto it.

    Raises:
        ValueError, FileNotFoundError, ImportError: the teacher cannot be had, or torchvision is missing.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, data: Data) -> None:
        self._smoothing = recipe.loss.label_smoothing
        self._mixing = _mixing(recipe.loss, data)
        self._loss: Callable[[Any, Any], Tensor] = self._cross_entropy
        if recipe.distill is not None:
            options = {**vars(recipe.distill), "loss": self._cross_entropy}
            teacher = teacher_of(recipe, options.pop("teacher"), data)
            self._loss = Distillation(model, teacher.to(data.device), **options)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, label_smoothing=self._smoothing)

    def mixed(self, inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
        """Mixes the images of a batch; labels become the classes' shares, float [B, num_classes]."""
        return (inputs, labels) if self._mixing is None else self._mixing(inputs, labels)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the mean loss of a batch."""
        return self._loss(logits, target)


def _mixing(recipe: LossRecipe, data: Data) -> Callable[..., Any] | None:
    """Mixup, cutmix, or one of them for each batch by chance."""
    alphas = {"MixUp": recipe.mixup, "CutMix": recipe.cutmix}
    if not any(alphas.values()):
        return None
    if not isinstance(data.example_inputs(), Tensor):
        raise ValueError(f"loss.mixup and loss.cutmix mix images, which {data.name!r} has not")
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ImportError("loss.mixup and loss.cutmix are torchvision's: pip install torchvision") from error
    chosen = [getattr(v2, name)(alpha=a, num_classes=data.num_classes) for name, a in alphas.items() if a > 0]
    return chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)


def teacher_of(recipe: Recipe, name: str, data: Data) -> nn.Module:
    """Returns the teacher: the network of a run's folder, or what a function named "module:function" returns."""
    if is_named(name):
        teacher = named_function("distill.teacher", name)()
        if not isinstance(teacher, nn.Module):
            raise ValueError(f"distill.teacher must return a module, got {type(teacher).__name__} from {name!r}")
        return teacher
    folder = Path(expand(name, "distill.teacher"))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"distill.teacher must be a run's folder or 'module:function', there is no folder {os.fspath(folder)!r}"
        )
    # Whoever trains functions of their own has said that they may be called.
    return load_network(folder, "last", data, trust=is_named(recipe.model.name) or is_named(recipe.data.name))[0]
