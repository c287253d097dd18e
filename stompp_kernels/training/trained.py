"""What `stompp train` left in a folder: its network, evaluated, packed, timed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stompp_kernels.bench.turns import compare, compare_on_gpu
from stompp_kernels.conversion import convert, explain, save_packed
from stompp_kernels.default_dtype import default_dtype
from stompp_kernels.device import choose_device
from stompp_kernels.files import read_json, write_json
from stompp_kernels.named import is_named
from stompp_kernels.training.build import build_model, load_data
from stompp_kernels.training.checkpoint import BEST, LAST, load_checkpoint
from stompp_kernels.training.data import Data
from stompp_kernels.training.evaluate import evaluate
from stompp_kernels.training.processes import Processes
from stompp_kernels.training.recipe import Recipe
from stompp_kernels.training.run_log import PACKED
from stompp_kernels.training.run_state import RunState
from stompp_kernels.training.saved_run import RECIPE, first_difference, recipe_of

if TYPE_CHECKING:
    from rich.console import Console

CHECKPOINTS = {"last": LAST, "best": BEST}


def load_trained(
    folder: Path, checkpoint: str = "last", data_path: str | None = None, device: str = "cpu", trust: bool = False
) -> tuple[nn.Module, Data, Recipe]:
    """The network of a run, in eval mode, with its data.

    Args:
        checkpoint: "last" or "best".
        data_path: where the data lie, if not where the recipe says.
        trust: call the functions that the run's recipe names as "module:function".

    Raises:
        FileNotFoundError: the folder has no such checkpoint.
        ValueError: it is damaged, of another run, or its recipe names functions and ``trust`` is not given.
    """
    where = choose_device(device)
    recipe, saved = _read(folder, checkpoint, trust)
    if data_path is not None:
        recipe = replace(recipe, data=replace(recipe.data, path=data_path))
    data = load_data(recipe, where)
    return _network(saved, recipe, data), data, recipe


def load_network(folder: Path, checkpoint: str, data: Data, trust: bool) -> tuple[nn.Module, Recipe]:
    """The network of a run, in eval mode, made for these data; arguments and errors as of :func:`load_trained`."""
    recipe, saved = _read(folder, checkpoint, trust)
    return _network(saved, recipe, data), recipe


def _network(saved: RunState, recipe: Recipe, data: Data) -> nn.Module:
    model = build_model(recipe, data)
    model.load_state_dict(saved.network(model))
    return model.eval()


def _read(folder: Path, checkpoint: str, trust: bool) -> tuple[Recipe, RunState]:
    if not (folder / RECIPE).is_file():
        raise FileNotFoundError(f"no run of `stompp train` in {os.fspath(folder)!r}: it has no {RECIPE}")
    file = CHECKPOINTS[checkpoint]
    saved = RunState(load_checkpoint(folder / file), os.fspath(folder / file), file)
    recipe = recipe_of(saved.recipe, folder / file)
    different = first_difference(recipe.to_dict(), recipe_of(read_json(folder / RECIPE), folder / RECIPE).to_dict())
    if different:
        raise ValueError(f"{os.fspath(folder / file)!r} is of another run than {RECIPE} beside it: {different}")
    check_trusted(recipe, trust)
    return recipe, saved


@default_dtype(torch.float32)
def evaluate_trained(model: nn.Module, data: Data, recipe: Recipe, packed: bool) -> tuple[float, float]:
    """Test accuracy in percent and mean loss of the network, or of what ``sk.convert`` makes of it."""
    network = convert(model) if packed else model
    return evaluate(network, network, data, recipe.batch_size, Processes(data.device))


@default_dtype(torch.float32)
def convert_trained(model: nn.Module, output: Path, console: Console) -> int:
    """Packs the network, shows what became of its layers, and saves it, in a folder that is made if need be.

    Returns the bytes of the file.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    packed = convert(model)
    console.print(str(explain(packed)), highlight=False)
    return save_packed(packed, output)


def check_trusted(recipe: Recipe, trust: bool) -> None:
    """Checks that functions which a run's own recipe names may be called.

    Raises:
        ValueError: it names one, and ``trust`` is not given: a run may be a stranger's.
    """
    names = [name for name in (recipe.model.name, recipe.data.name) if is_named(name)]
    if names and not trust:
        raise ValueError(
            f"the recipe in this run calls {' and '.join(names)}: give --trust if you know where it is from"
        )


def note_packed(folder: Path, **values: float) -> None:
    """Notes figures of the packed network of a run's last checkpoint in its folder, where the report finds them."""
    path = folder / PACKED
    if os.access(folder, os.W_OK):  # the run may lie where nothing can be written
        write_json(path, {**(read_json(path) if path.exists() else {}), **values})


@torch.no_grad()
def time_network(float_model: nn.Module, packed: nn.Module, images: Tensor) -> tuple[float, float]:
    """Median milliseconds of both networks, channels_last."""
    images = images.contiguous(memory_format=torch.channels_last)
    sides = {"float": lambda: float_model(images), "packed": lambda: packed(images)}
    ms = compare_on_gpu(sides) if images.is_cuda else compare(sides, 1.0)
    return ms["float"].median, ms["packed"].median
