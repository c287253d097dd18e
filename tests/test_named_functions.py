"""Recipes that name a model and a data set of one's own as "module:function"."""

import json
import sys

import pytest
import torch
from rich.console import Console

from stompp_kernels.cli import main
from stompp_kernels.training import data as datasets
from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.recipe import read_recipe
from stompp_kernels.training.trainer import train

OWN = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Noisy(TensorDataset):
    """Draws from torch's random numbers, as transforms do."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(x.shape), y


def data(path=None, samples=64, workers=0):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, 2, 6, 6, generator=g), torch.arange(samples) % 3
    return {"train": Noisy(x, y), "test": TensorDataset(x[:20], y[:20]), "num_classes": 3, "workers": workers}


def pair():
    parts = data()
    return parts["train"], parts["test"]


class Net(nn.Sequential):
    """A small network."""

    def __init__(self, num_classes, in_channels, width=4):
        super().__init__(
            nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * width, num_classes),
        )


def without_classes(width=4):
    return None


number = 3
'''
SETTINGS = ["epochs=2", "batch_size=16", "optimizer.lr=0.05", "progression.regime=ste"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's in the working folder."""
    (tmp_path / "my_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_code", None)


def recipe(*changes):
    return read_recipe(None, ["model.name=my_code:Net", "data.name=my_code:data", *SETTINGS, *changes])


def test_a_run_of_one_s_own_model_and_data_repeats_itself_and_resumes(own):
    quiet = {"device": "cpu", "console": Console(quiet=True)}
    result = train(recipe("model.options.width=6"), own / "a", **quiet)
    assert (result["frontier"], result["units"]) == (1, 1)
    train(recipe("model.options.width=6"), own / "b", **quiet)
    a, b = (load_checkpoint(own / name / LAST)["model"] for name in "ab")
    assert a["0.weight"].shape == (6, 2, 3, 3), "in_channels is the data's"
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_a_batch_is_a_function_of_seed_epoch_and_number(own):
    found = datasets.load("my_code:data", samples=32)
    whole = list(found.train_batches(0, 8, seed=1))
    assert torch.equal(whole[2][0], next(found.train_batches(0, 8, seed=1, start=2))[0])
    halves = [next(found.train_batches(0, 8, seed=1, rank=rank, world_size=2))[0] for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole[0][0])
    assert not torch.equal(whole[0][0], next(found.train_batches(1, 8, seed=1))[0])
    by_workers = list(datasets.load("my_code:data", samples=32, workers=2).train_batches(0, 8, seed=1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, by_workers, strict=True))
    assert (datasets.load("my_code:pair").num_classes, found.steps_per_epoch(8)) == (3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.name=no_such:Net", "model.name must be 'module:function', but 'no_such' cannot be imported"),
        ("model.name=my_code:Other", "model.name must be 'module:function', but 'my_code' has no 'Other'"),
        ("model.name=my_code:number", "model.name must name a function or a class, got int for 'my_code:number'"),
        (
            "model.name=my_code:without_classes",
            r"'my_code:without_classes' must take num_classes, it takes \(width=4\)",
        ),
        ("data.name=my_code:Net.forward", "data.options of 'my_code:Net.forward' do not fit the function"),
        ("data.options.size=3", "data.options of 'my_code:data' do not fit the function: .*'size'"),
        ("data.name=my_code:without_classes", "'my_code:without_classes' must return a pair of datasets"),
    ],
)
def test_what_is_wrong_with_a_function_is_said(own, change, message):
    changes = [change] if "name" not in change else []
    values = {
        "model.name": "my_code:Net",
        "data.name": "my_code:data",
        **dict([change.split("=")] if not changes else []),
    }
    given = read_recipe(None, [*(f"{key}={value}" for key, value in values.items()), *SETTINGS, *changes])
    with pytest.raises(ValueError, match=message):
        train(given, own / "run", device="cpu", console=Console(quiet=True))


def test_a_run_that_may_be_a_stranger_s_calls_nothing_unasked(own, capsys):
    train(recipe(), own / "run", device="cpu", console=Console(quiet=True))
    (own / "my_code.py").write_text(OWN + '\nopen("called", "w").close()\n')
    del sys.modules["my_code"]
    commands = [["eval", "run"], ["convert", "run", "--output", "net.safetensors"], ["bench", "run", "--no-compile"]]
    for command in [*commands, ["train", "--resume", "--output", "run"]]:
        assert main(command) == 2
        assert "the recipe in this run calls my_code:Net and my_code:data: give --trust" in capsys.readouterr().err
    assert not (own / "called").exists()
    assert main(["eval", "run", "--packed", "--trust"]) == 0
    accuracy = json.loads((own / "run" / "result.json").read_text())["result"]["accuracy"]
    assert f"accuracy {accuracy:.2f} %" in capsys.readouterr().out
    assert (own / "called").exists()
