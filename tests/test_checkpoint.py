"""Checkpoints: damage of every kind is refused with the path, and what does not fit a run is named."""

import hashlib
import os
import random
import struct
import sys
import warnings
import zipfile

import pytest
import torch
from test_training import records, run, small

from stompp_kernels.cli import main
from stompp_kernels.training.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint

DAMAGED = 600


def state():
    g = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(40, generator=g), "b": torch.randn(3, 5, generator=g).bfloat16()}
    optimizer = {"state": {0: {"momentum_buffer": torch.randn(40, generator=g)}}, "param_groups": [{"lr": 0.1}]}
    return {"step": 7, "accuracy": float("nan"), "best": [1, 2.0], "model": tensors, "optimizer": optimizer}


def flip_a_bit(content, g):
    place = g.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8


def cut_short(content, g):
    del content[g.randrange(len(content)) :]


def append(content, g):
    content += g.randbytes(g.randrange(1, 100))


def zero_a_block(content, g):
    start = g.randrange(len(content))
    content[start : start + 64] = bytes(len(content[start : start + 64]))


def repeat_a_block(content, g):
    start = g.randrange(len(content) - 64)
    content[start:start] = content[start : start + 64]


def swap_blocks(content, g):
    a, b = (64 * g.randrange(len(content) // 64) for _ in range(2))
    content[a : a + 64], content[b : b + 64] = content[b : b + 64], content[a : a + 64]


DAMAGES = [flip_a_bit, cut_short, append, zero_a_block, repeat_a_block, swap_blocks]


def test_every_damaged_checkpoint_is_refused_with_its_path(tmp_path):
    path, g = tmp_path / "a.pt", random.Random(0)
    save_checkpoint(path, state())
    whole = path.read_bytes()
    refused = 0
    for number in range(DAMAGED):
        content = bytearray(whole)
        while content == whole:  # a block of zeros may be zero already
            DAMAGES[number % len(DAMAGES)](content, g)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.pt' is damaged or no checkpoint: [^\n]*$"):
            load_checkpoint(path)
        refused += 1
    assert refused == DAMAGED
    path.write_bytes(whole)
    assert load_checkpoint(path)["step"] == 7


def test_every_bit_of_the_header_and_every_length_counts(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": torch.ones(2)})
    whole = path.read_bytes()
    for bit in range(8 * 60):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.pt"):
            load_checkpoint(path)
    for length in [*range(80), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.pt"):
            load_checkpoint(path)


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = tmp_path / "a.pt"
    saved = state()
    save_checkpoint(path, saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_checkpoint(path)
    assert loaded.keys() == saved.keys()
    assert loaded["accuracy"] != loaded["accuracy"]
    assert loaded["optimizer"]["param_groups"] == [{"lr": 0.1}]
    assert torch.equal(
        loaded["optimizer"]["state"][0]["momentum_buffer"], saved["optimizer"]["state"][0]["momentum_buffer"]
    )
    for key, tensor in saved["model"].items():
        assert torch.equal(loaded["model"][key], tensor)
        assert loaded["model"][key].dtype == tensor.dtype


def test_a_checkpoint_of_before_there_was_a_checksum_is_read_with_a_warning(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"version": 1, **state()}, path)
    with pytest.warns(UserWarning, match=r"a\.pt' carries no checksum"):
        assert load_checkpoint(path)["step"] == 7
    torch.save(torch.ones(2), path)
    with pytest.raises(ValueError, match=r"a\.pt' is no checkpoint: it must hold a dict, got Tensor"):
        load_checkpoint(path)


def test_another_version_is_named(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, state())
    content = path.read_bytes()
    fields, payload = content[:8] + struct.pack("<IQ", 3, len(content) - 52), content[52:]
    checksum = hashlib.sha256(fields + hashlib.sha256(payload).digest()).digest()
    path.write_bytes(fields + checksum + payload)
    with pytest.raises(ValueError, match=r"a\.pt' has version 3, this package reads 1 and 2"):
        load_checkpoint(path)


class Runs:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


FORGED = {
    "expanded": (lambda: torch.ones(1).expand(1 << 40), r"'x' is a tensor of shape \[1099511627776\] with 4 bytes"),
    "sparse": (lambda: torch.sparse_coo_tensor(size=(1 << 30, 1 << 30)), "'x' is a sparse tensor"),
    "meta": (lambda: torch.empty(1 << 40, device="meta"), "'x' is a tensor on meta"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "'x' is a quantized tensor"),
    "set": (lambda: {1, 2}, "'x' is of type set"),
    "key": (lambda: {(1, 2): 3}, "'x' has a key of type tuple"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", FORGED)
def test_what_no_run_saves_is_refused_though_its_checksum_is_right(case, tmp_path):
    make, message = FORGED[case]
    save_checkpoint(tmp_path / "a.pt", {"x": make()})
    with pytest.raises(ValueError, match=rf"a\.pt' is no checkpoint: {message}|a\.pt' is damaged or no checkpoint: "):
        load_checkpoint(tmp_path / "a.pt")


def test_nothing_runs_and_nothing_is_inflated_when_a_checkpoint_is_loaded(tmp_path):
    made = tmp_path / "made"
    save_checkpoint(tmp_path / "a.pt", {"x": Runs(str(made))})
    with pytest.raises(ValueError, match=r"a\.pt' is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    assert not made.exists()

    torch.save({"version": 1, "x": torch.zeros(1 << 22)}, tmp_path / "b.pt")
    with (
        zipfile.ZipFile(tmp_path / "b.pt") as plain,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as c,
    ):
        for entry in plain.infolist():
            c.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "c.pt").stat().st_size < (1 << 16)
    with pytest.raises(ValueError, match=r"c\.pt' is damaged or no checkpoint: .* is compressed"):
        load_checkpoint(tmp_path / "c.pt")

    nested = []
    for _ in range(sys.getrecursionlimit() // 4):
        nested = [nested]
    save_checkpoint(tmp_path / "d.pt", {"x": nested})
    with pytest.raises(ValueError, match=r"d\.pt' is no checkpoint: 'x' is nested deeper"):
        load_checkpoint(tmp_path / "d.pt")


def test_what_cannot_be_written_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": torch.ones(3)})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.pt'"):
        save_checkpoint(path, {"x": torch.zeros(3)})
    monkeypatch.undo()
    assert torch.equal(load_checkpoint(path)["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


# In a run's folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(small(epochs=2), folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run, to be damaged."""
    copy = tmp_path / "run"
    copy.mkdir()
    for path in finished.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def changed(folder, change, name=LAST):
    content = load_checkpoint(folder / name)
    change(content)
    save_checkpoint(folder / name, content)


def first(content, key="model"):
    return next(key for key, value in content[key].items() if value.dtype == torch.float32 and value.dim() == 4)


WRONG = {
    "a weight is missing": (lambda c: c["model"].pop(first(c)), r"'model\..*' is missing"),
    "an unknown weight": (lambda c: c["model"].update(other=torch.ones(1)), "'model.other' is unknown"),
    "another shape": (
        lambda c: c["model"].update({first(c): torch.ones(3)}),
        r"'model\..*' must be torch.float32 of shape",
    ),
    "another type": (lambda c: c["model"].update({first(c): c["model"][first(c)].double()}), "got torch.float64"),
    "no tensor": (lambda c: c["model"].update({first(c): 1.0}), "must be a tensor, got 1.0"),
    "no model": (lambda c: c.pop("model"), "'model' is missing"),
    "a model of another type": (lambda c: c.update(model=[1]), "'model' must be of type dict, got a list"),
    "a stage that does not exist": (
        lambda c: next(v for k, v in c["model"].items() if k.endswith("_extra_state")).__setitem__(0, 9),
        "'model.*_extra_state' must be a stage",
    ),
    "no optimizer": (lambda c: c.pop("optimizer"), "'optimizer' is missing"),
    "an empty optimizer": (lambda c: c.update(optimizer={}), "'optimizer' must have 'param_groups'"),
    "other settings": (
        lambda c: c["optimizer"]["param_groups"][0].update(momentum=0.5),
        "'optimizer.param_groups' must",
    ),
    "a momentum of another shape": (
        lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.ones(1 << 12)),
        r"'optimizer.state.0.momentum_buffer' must be torch.float32",
    ),
    "a momentum of no parameter": (
        lambda c: c["optimizer"]["state"].update({99: {}}),
        "'optimizer.state.99' belongs to no",
    ),
    "another value of the optimizer": (
        lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.ones(1)),
        "'optimizer.state.0.exp_avg' must be one of momentum_buffer",
    ),
    "a step past the end": (lambda c: c.update(step=1000), r"'step' must be in \[0, 8\], got 1000"),
    "a progression at another step": (lambda c: c["progression"].update(step=1), "'progression' must be the state"),
    "no signs": (lambda c: c.update(diagnostics={}), "'diagnostics.signs' must be a list of 4 tensors"),
    "a best of text": (lambda c: c.update(best=["a", "b"]), "'best' must be a frontier and an accuracy"),
    "endless seconds": (lambda c: c.update(seconds=float("inf")), "'seconds' must be finite"),
    "no recipe": (lambda c: c.pop("recipe"), "'recipe' is missing"),
    "another recipe": (lambda c: c["recipe"].update(epochs=5), "has another recipe: epochs is 5, got 2"),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("case", WRONG)
def test_a_checkpoint_that_does_not_fit_its_run_is_named_by_file_and_key(case, folder):
    change, message = WRONG[case]
    changed(folder, change)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=f"(run'|{LAST}').*{message}"):
        run(small(epochs=2), folder, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "nothing in the folder changes"


def test_swapped_checkpoints_are_refused_when_a_run_resumes_and_when_it_is_evaluated(folder, capsys):
    last, best = (folder / LAST).read_bytes(), (folder / BEST).read_bytes()
    (folder / LAST).write_bytes(best)
    (folder / BEST).write_bytes(last)
    with pytest.raises(ValueError, match=f"{LAST}' does not fit this run: 'file' must be '{LAST}', got '{BEST}'"):
        run(small(epochs=2), folder, resume=True)
    for flags in (["--checkpoint", "last"], ["--checkpoint", "best"]):
        assert main(["eval", str(folder), *flags]) == 2
        assert "checkpoints were swapped" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "convert", "bench"])
def test_commands_refuse_a_checkpoint_that_is_damaged_or_of_another_run(command, folder, tmp_path, capsys):
    flags = {"eval": [], "convert": ["--output", str(tmp_path / "a.safetensors")], "bench": ["--no-compile"]}[command]
    changed(folder, lambda content: content["recipe"].update(seed=5))
    assert main([command, str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert f"{LAST}' is of another run than recipe.json beside it: seed is 5, got 0" in error
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-1])
    assert main([command, str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert f"{LAST}' is damaged or no checkpoint" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()


def test_a_run_goes_on_from_a_checkpoint_without_a_checksum(folder):
    content = load_checkpoint(folder / LAST)
    del content["file"]
    torch.save({"version": 1, **content}, folder / LAST)
    with pytest.warns(UserWarning, match="carries no checksum"):
        run(small(epochs=2), folder, resume=True)
    assert records(folder)[-1]["event"] == "end"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(folder / BEST)["model"].keys() == content["model"].keys()


def test_a_run_that_lost_its_recipe_is_not_written_over(folder):
    (folder / "recipe.json").unlink()
    before = (folder / LAST).read_bytes()
    with pytest.raises(ValueError, match=r"has a run already \(result.json\)"):
        run(small(epochs=2), folder)
    assert (folder / LAST).read_bytes() == before
