"""What a recipe describes, made: data, model, progression, optimizer."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from stompp_kernels import models
from stompp_kernels.default_dtype import default_dtype
from stompp_kernels.progression import StoMPP
from stompp_kernels.training import data as datasets
from stompp_kernels.training.blockade import Blockade, set_apart
from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.data import Data, Inputs
from stompp_kernels.training.data.base import mixed_seed
from stompp_kernels.training.no_progression import NoProgression
from stompp_kernels.training.recipe import NOTHING, SOFT, OptimizerRecipe, Recipe, expand

PROBE_SIZE = 32  # samples that a model is prepared with, and that saturation is measured on


def load_data(recipe: Recipe, device: torch.device) -> Data:
    """Loads the data of a recipe onto a device."""
    path, options = expand(recipe.data.path, "data.path"), expand(recipe.data.options, "data.options")
    return datasets.load(recipe.data.name, path, **options).to(device)


@default_dtype(torch.float32)
def build_model(recipe: Recipe, data: Data, prepared: bool = True, start: bool = False) -> nn.Module:
    """Makes the model of a recipe as it is before the first step, on the data's device.

    Args:
        recipe: has the model's name, options and seed.
        data: decide on the model's input and its classes.
        prepared: False: the float model that it is made from.
        start: read the weights of ``recipe.init_from``. What is loaded afterwards needs them not.
    """
    torch.manual_seed(mixed_seed(recipe.seed, -1))
    options = {**_shape_options(recipe.model.name, data), **expand(recipe.model.options, "model.options")}
    preparation: dict[str, Any] = {}
    if prepared and recipe.model.binarize != NOTHING:
        preparation = {
            "binarize": recipe.model.binarize,
            "prepare_options": recipe.model.prepare,
            "example": example_of(data, torch.device("cpu")),
        }
    if start and recipe.init_from is not None:
        preparation["state_dict"] = weights_on_disk(expand(recipe.init_from, "init_from"))
    model = models.create(recipe.model.name, data.num_classes, **preparation, **options)
    memory_format = torch.channels_last if recipe.channels_last else torch.preserve_format
    return model.to(data.device, memory_format=memory_format)


def check_names(recipe: Recipe) -> None:
    """Checks, before a run begins, that the recipe's model and data set are known, and so are their options.

    Raises:
        ValueError: one is not; the message names it and what is allowed.
    """
    known = models.entry(recipe.model.name).options()
    for option in recipe.model.options:
        if option not in known:
            raise ValueError(f"model.options of {recipe.model.name!r} must be among {', '.join(known)}, got {option!r}")
    datasets.check_options(recipe.data.name, recipe.data.options)


def example_of(data: Data, device: torch.device) -> Inputs:
    """Real inputs, the same for every seed."""
    inputs = next(data.test_batches(PROBE_SIZE))[0]
    return inputs.to(device) if isinstance(inputs, Tensor) else {key: x.to(device) for key, x in inputs.items()}


def _shape_options(name: str, data: Data) -> dict[str, int]:
    """Those options of a model that its data determine."""
    example = data.example_inputs()
    if isinstance(example, dict):
        found = {"max_length": example["input_ids"].shape[1]}
    else:
        found = {"in_channels": example.shape[1], "image_size": example.shape[-1]}
    return {key: value for key, value in found.items() if key in models.entry(name).options()}


def build_progression(recipe: Recipe, model: nn.Module, total_steps: int) -> StoMPP | NoProgression:
    """Makes what commits the model of a recipe, or stands in its place."""
    if recipe.model.binarize == NOTHING:
        return NoProgression()
    if recipe.blockade is not None and recipe.blockade.rest == SOFT:
        return Blockade(model, recipe.blockade, total_steps)
    options = {"binarize": recipe.model.binarize, "seed": recipe.seed, **vars(recipe.progression)}
    progression = StoMPP(model, total_steps, **options)
    if recipe.blockade is not None:
        set_apart(progression.units, recipe.blockade)
    return progression


def lr_factor(recipe: OptimizerRecipe, step: int, total_steps: int) -> float:
    """What the learning rate of step ``step``, from 0, is a multiple of."""
    warmup = recipe.warmup * total_steps
    rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    left = 1 - step / total_steps
    fall = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return rise * fall[recipe.schedule]


def build_optimizer(recipe: OptimizerRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """Makes the optimizer of a recipe."""
    groups: Any = model.parameters()
    if recipe.decay == "matrices":
        parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in model.parameters():
            parts[parameter.dim() < 2].append(parameter)
        decays = zip(parts, (recipe.weight_decay, 0.0), strict=True)
        groups = [{"params": part, "weight_decay": decay} for part, decay in decays if part]
    if recipe.name == "sgd":
        return torch.optim.SGD(groups, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    kind = torch.optim.Adam if recipe.name == "adam" else torch.optim.AdamW
    return kind(groups, recipe.lr, weight_decay=recipe.weight_decay)


def weights_on_disk(path: str) -> dict[str, Tensor]:
    """Reads a state dict: of the last checkpoint of a run's folder (the average if it has one), or of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds other things than tensors.
    """
    if os.path.isdir(path):
        content = load_checkpoint(Path(path) / LAST)
        state = content.get("average", content.get("model"))
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"init_from must be the folder of a run or a file, there is none at {path!r}")
    elif path.endswith(".safetensors"):
        state = safetensors.torch.load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises nearly anything
            raise ValueError(f"init_from must hold a state dict, but {path!r} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"init_from must hold a state dict of tensors, got something else in {path!r}")
    return state
