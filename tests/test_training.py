"""`stompp train` and what follows it: recipes, runs, records, resuming, evaluation, conversion, studies."""

import inspect
import io
import json
import math
import os
import re
import shlex
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import run_python, start_stompp
from rich.console import Console

import stompp_kernels as sk
from stompp_kernels.bench import memory
from stompp_kernels.cli import main
from stompp_kernels.progression.schedule import reached_fraction
from stompp_kernels.training import ablate, trainer
from stompp_kernels.training.ablate import read_study
from stompp_kernels.training.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from stompp_kernels.training.diagnostics import Diagnostics
from stompp_kernels.training.processes import Stopped
from stompp_kernels.training.progress_bar import ProgressBar
from stompp_kernels.training.recipe import OptimizerRecipe, read_recipe, recipe_from_dict
from stompp_kernels.training.trainer import lr_factor, train

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
RECIPE_FILES = sorted(path for path in RECIPES.glob("*/*.toml") if path.parent.name != "base")

SMALL = {
    "name": "small",
    "model": {"name": "small_resnet", "options": {"widths": [8, 8], "strides": [1, 2]}},
    "data": {"name": "digits", "options": {"train_limit": 256, "test_limit": 100}},
    "optimizer": {"lr": 0.1},
    "epochs": 3,
    "batch_size": 64,
    "log_every": 3,
    "diagnostics_every": 4,
}
QUIET = Console(quiet=True)


def small(**changes):
    return recipe_from_dict({**SMALL, **changes})


def run(recipe, folder, **options):
    return train(recipe, folder, device="cpu", console=QUIET, **options)


def records(folder, event=None):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if event in (None, line["event"])]


@pytest.fixture
def one_thread(restore_threads):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, run(small(), folder)


# Recipes


def test_a_recipe_is_defaults_a_file_what_it_extends_and_changes(tmp_path):
    base = 'epochs = 7\ndata.name = "digits"\n[model]\nname = "mlp"\noptions.width = 4\n'
    (tmp_path / "base.toml").write_text(base)
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\nseed = 3\n[model]\noptions.depth = 2\n')
    changes = ["progression.order=reverse", "optimizer.lr=1", "model.options.width=5", "amp=true"]
    recipe = read_recipe(tmp_path / "mine.toml", changes)
    assert (recipe.name, recipe.epochs, recipe.seed, recipe.amp) == ("mine", 7, 3, True)
    assert recipe.model.options == {"width": 5, "depth": 2}
    assert (recipe.progression.order, recipe.optimizer.lr, recipe.batch_size) == ("reverse", 1.0, 256)
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_progression_of_a_recipe_has_the_arguments_and_defaults_of_stompp():
    parameters = inspect.signature(sk.StoMPP).parameters.values()
    elsewhere = ("model", "total_steps", "binarize", "seed")
    expected = {p.name: p.default for p in parameters if p.name not in elsewhere}
    recipe = recipe_from_dict({"name": "run", "model": {"name": "mlp"}, "data": {"name": "digits"}})
    assert recipe.to_dict()["progression"] == expected
    # What files of recipes may hold.
    assert {key: type(value) for key, value in expected.items()} == {
        **dict.fromkeys(("regime", "surrogate", "shape", "order", "activation_masks", "refresh"), str),
        **dict.fromkeys(("surrogate_weights", "surrogate_activations"), type(None)),
        **dict.fromkeys(("overlap", "warmup", "cooldown"), float),
        **dict.fromkeys(("clip_latent", "freeze_prefix"), bool),
    }


def test_toml_yaml_and_json_say_the_same(tmp_path):
    (tmp_path / "a.toml").write_text('name = "x"\n[model]\nname = "mlp"\n[data]\nname = "digits"\n')
    (tmp_path / "a.yaml").write_text("name: x\nmodel: {name: mlp}\ndata: {name: digits}\n")
    (tmp_path / "a.json").write_text('{"name": "x", "model": {"name": "mlp"}, "data": {"name": "digits"}}')
    assert len({json.dumps(read_recipe(tmp_path / f"a.{kind}").to_dict()) for kind in ("toml", "yaml", "json")}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("progresion.order=reverse", "unknown key 'progresion'"),
        ("progression.ordr=reverse", "unknown key 'progression.ordr'"),
        ("epochs=0", "epochs must be positive, got 0"),
        ("epochs=ten", "epochs must be of type int, got 'ten'"),
        ("epochs=true", "epochs must be of type int, got True"),
        ("seed=-1", "seed must not be negative"),
        ("optimizer.name=lamb", "optimizer.name must be one of"),
        ("optimizer.warmup=1.5", "optimizer.warmup must be in"),
        ("model.binarize=none", "model.binarize must be"),
        ("progression.refresh=fast", "progression.refresh must be 'auto' or a number of at least 1, got 'fast'"),
        ("progression.refresh=0.5", "progression.refresh must be at least 1, got 0.5"),
        ("progression.refresh=[1]", "progression.refresh must be of type float, got"),
        ("progression.regime=stefree", "progression.regime must be one of"),
        ("progression.order=sideways", "progression.order must be one of"),
        ("progression.surrogate_weights=none", "progression.surrogate_weights must be one of"),
        ("progression.warmup=1", "progression.warmup must be in"),
        ("model=mlp", "model must hold keys and values, got 'mlp'"),
        ("epochs.x=1", "'epochs' has none below it"),
        ("epochs", "must be key=value"),
    ],
)
def test_a_wrong_value_of_a_recipe_is_named(tmp_path, change, message):
    (tmp_path / "small.json").write_text(json.dumps({**SMALL}))
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "small.json", [change])


def test_recipes_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        read_recipe(tmp_path / "none.toml")
    for name, text, message in (
        ("a.toml", "epochs = ", "no valid TOML"),
        ("a.yaml", "a: [", "no valid YAML"),
        ("a.ini", "", "must be a .toml"),
        ("b.toml", 'extends = "b.toml"', "extends itself"),
        ("c.toml", 'model = {name = "mlp"}', "must have 'data'"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_of_the_repository_is_one(path):
    for recipe in read_study(path):
        entry = sk.models.entry(recipe.model.name)
        assert set(recipe.model.options) <= set(entry.options())
        assert recipe.paper is None or 0 < recipe.paper.top1 < 100


def test_the_paper_s_figures_have_recipes():
    found = {recipe.paper.top1 for path in RECIPE_FILES for recipe in read_study(path) if recipe.paper}
    table = {51.5, 26.7, 30.8, 69.5, 40.2, 34.2, 78.6, 46.5, 48.5}
    rest = {40.5, 48.0, 50.9, 82.8, 91.2, 53.8, 53.2, 28.4, 40.0, 35.9, 8.6, 48.9, 46.8, 54.2}
    assert found == table | rest


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_and_then_follows_its_schedule(schedule):
    recipe = OptimizerRecipe(schedule=schedule, warmup=0.1)
    factors = [lr_factor(recipe, step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1 * lr_factor(replace(recipe, warmup=0.0), 0, 100))
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(1.0 if schedule == "constant" else 0.0)
    assert factors[50] == pytest.approx(1.0 if schedule == "constant" else 0.5)


# A run


def test_a_run_ends_binary_with_records_checkpoints_and_a_result(finished):
    folder, result = finished
    assert result["frontier"] == result["units"] == 4
    assert result["steps"] == 12
    names = {"recipe.json", "log.jsonl", LAST, BEST, "result.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "result.json").read_text())["result"] == result

    events = records(folder)
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert [event["step"] for event in events] == sorted(event["step"] for event in events)
    start = events[0]
    assert (start["total_steps"], start["steps_per_epoch"], len(start["units"])) == (12, 4, 4)
    assert [e["unit"] for e in records(folder, "commit")] == start["units"]
    assert [e["step"] for e in records(folder, "commit")] == [stop for _, stop in start["windows"]]
    steps = records(folder, "step")
    assert sum(len(e["losses"]) for e in steps) == sum(len(e["accuracies"]) for e in steps) == 12
    assert all(0 <= a <= 100 for e in steps for a in e["accuracies"])
    assert [e["epoch"] for e in records(folder, "evaluation")] == [1, 2, 3]
    assert records(folder, "evaluation")[-1]["accuracy"] == result["accuracy"]


def test_diagnostics_see_the_blockade_and_the_frozen_fraction(finished):
    folder, _ = finished
    for event in records(folder, "diagnostics"):
        committed = sum(e["step"] <= event["step"] for e in records(folder, "commit"))
        # The norm is taken before the masks move on, hence of the commitments of the step before.
        before = sum(e["step"] < event["step"] for e in records(folder, "commit"))
        assert event["gradient_norm"][:before] == [None] * before
        assert all(norm > 0 for norm in event["gradient_norm"][before:])
        assert event["frozen"][:committed] == [1.0] * committed
        assert all(f < 1 for f in event["frozen"][committed:])
        assert all(0 < s < 1 for s in event["saturation"])
    assert max(max(event["flip_ratio"]) for event in records(folder, "diagnostics")) > 0


def test_diagnostics_leave_no_trace_and_count_flips_and_saturation():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    model = sk.models.create("resnet20", width=4, image_size=8, binarize="both").train()
    progression = sk.StoMPP(model, 100)
    diagnostics = Diagnostics(model, progression.units)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = diagnostics.record(x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert first["flip_ratio"] == [0.0] * 18
    assert diagnostics.gradient_norms() == [None] * 18

    weight = progression.units[2].layer.weight
    with torch.no_grad():
        weight.view(-1)[:9].neg_()
        second = diagnostics.record(x)
    assert second["flip_ratio"] == [0.0, 0.0, 9 / weight.numel()] + [0.0] * 15
    seen = {}
    unit = progression.units[0]
    hook = unit.activation.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0].detach()))
    model.eval()(x)
    hook.remove()
    assert second["saturation"][0] == pytest.approx(float((seen["x"].abs() > 1).float().mean()))
    model(x).sum().backward()
    assert diagnostics.gradient_norms()[5] == pytest.approx(float(progression.units[5].layer.weight.grad.norm()))


def test_the_best_checkpoint_is_of_the_furthest_frontier(finished):
    folder, result = finished
    evaluations = records(folder, "evaluation")
    best = max(evaluations, key=lambda e: (e["frontier"], e["accuracy"]))
    saved = load_checkpoint(folder / BEST)
    assert saved["step"] == best["step"]
    assert result["best_accuracy"] == best["accuracy"]
    assert "optimizer" not in saved


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(finished, tmp_path, one_thread):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(small(epochs=1, seed=seed), tmp_path / name)
    a, b, c = (load_checkpoint(tmp_path / name / LAST)["model"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["fc.weight"], c["fc.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"progression": {"regime": "ste", "surrogate": "clip"}},
        {"progression": {"regime": "vanilla_ste", "surrogate": "clip"}, "optimizer": {"name": "adam", "lr": 0.01}},
        {"model": {**SMALL["model"], "binarize": "weights"}, "optimizer": {"name": "adamw", "lr": 0.01}},
        {"amp": True, "channels_last": False, "optimizer": {"max_gradient_norm": 1.0, "schedule": "cosine"}},
    ],
    ids=["ste", "vanilla-adam", "bwn-adamw", "amp-clip-cosine"],
)
def test_other_regimes_and_optimizers_learn_and_end_binary(changes, tmp_path):
    result = run(small(**changes, epochs=4), tmp_path / "run")
    assert result["frontier"] == 4
    losses = [loss for event in records(tmp_path / "run", "step") for loss in event["losses"]]
    assert all(math.isfinite(loss) for loss in losses)
    assert min(losses[4:]) < losses[0]


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_an_eager_one(tmp_path, monkeypatch, one_thread):
    # Dynamo without a compiler of kernels, which round otherwise: here it is the way through the trainer that counts.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    losses = []
    for name, compiled in (("eager", False), ("compiled", True)):
        run(small(epochs=1, compile=compiled), tmp_path / name)
        losses.append([loss for e in records(tmp_path / name, "step") for loss in e["losses"]])
    assert losses[0] == losses[1]


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [False, True])
def test_a_run_on_a_gpu_ends_binary_and_repeats_itself(amp, tmp_path):
    for name in "ab":
        assert train(small(amp=amp), tmp_path / name, device="cuda", console=QUIET)["frontier"] == 4
    a, b = (load_checkpoint(tmp_path / name / LAST)["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


# Stopping and going on


def test_a_run_of_an_older_version_goes_on_with_its_own_recipe(tmp_path, one_thread):
    """Its files lack settings that are new, and hold what were defaults then."""
    folder, arguments = tmp_path / "run", {"progression": {"regime": "ste", "refresh": 100, "surrogate": "identity"}}
    whole = run(small(**arguments), folder)
    for name in (LAST, BEST):
        saved = load_checkpoint(folder / name)
        for values in (saved["recipe"]["progression"], saved.get("progression", {"config": {}})["config"]):
            values.pop("surrogate_weights", None)
            values.pop("surrogate_activations", None)
        save_checkpoint(folder / name, saved)
    (folder / "recipe.json").write_text(json.dumps(load_checkpoint(folder / LAST)["recipe"]))
    assert main(["train", "--resume", "--output", str(folder), "--device", "cpu"]) == 0
    assert json.loads((folder / "result.json").read_text())["result"] == whole
    with pytest.raises(
        ValueError, match=r"another recipe: progression\.\w+ is .*`stompp train --resume --output"
    ) as error:
        run(small(progression={"regime": "ste"}), folder, resume=True)
    assert str(folder) in str(error.value)


def test_records_tell_what_masks_have_reached_beside_p(finished):
    folder, _ = finished
    assert records(folder, "start")[0]["refresh"] == 1.0
    assert all(0 <= event["frozen"] <= 1 for event in records(folder, "step"))
    assert any(event["frozen"] > 0 for event in records(folder, "step"))
    windows = [stop - start for start, stop in records(folder, "start")[0]["windows"]]
    for event, window in zip(records(folder, "commit"), windows, strict=True):
        assert event["frozen"] == pytest.approx(reached_fraction("cubic", window, 1.0), abs=0.1), "before the commit"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on_to_the_same_bits(number, tmp_path, monkeypatch, one_thread):
    run(small(), tmp_path / "whole")
    step = trainer.Run._train_step

    def kill_at_7(self, *batch):
        step(self, *batch)
        if self.step == 7:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer.Run, "_train_step", kill_at_7)
    with pytest.raises(Stopped, match=f"{number.name} at step 7") as stopped:
        run(small(), tmp_path / "broken")
    assert stopped.value.number == number
    assert load_checkpoint(tmp_path / "broken" / LAST)["step"] == 7
    monkeypatch.undo()
    run(small(), tmp_path / "broken", resume=True)
    whole, broken = (load_checkpoint(tmp_path / name / LAST) for name in ("whole", "broken"))
    assert all(torch.equal(value, broken["model"][key]) for key, value in whole["model"].items())
    events = records(tmp_path / "broken")
    assert [e["step"] for e in events if e["event"] == "resume"] == [7]
    losses = [[x for e in records(tmp_path / n, "step") for x in e["losses"]] for n in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_resuming_drops_records_after_the_checkpoint_and_a_line_cut_short(tmp_path, one_thread):
    folder = tmp_path / "run"
    run(small(), folder)
    whole = records(folder)
    saved = load_checkpoint(folder / LAST)
    early = tmp_path / "early"
    run(small(), early)
    log = (early / "log.jsonl").read_text()
    (early / "log.jsonl").write_text(log + '{"event": "step", "st')
    run(small(), early, resume=True)
    assert [e["event"] for e in records(early)] == [*(e["event"] for e in whole[:-1]), "resume", "end"]
    assert saved["step"] == 12


def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed(finished):
    folder, _ = finished
    before = (folder / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match="has a run already"):
        run(small(), folder)
    with pytest.raises(ValueError, match=r"another recipe: optimizer\.lr is 0\.1, got 0\.2"):
        run(small(optimizer={"lr": 0.2}), folder, resume=True)
    assert (folder / "log.jsonl").read_bytes() == before


def test_a_checkpoint_is_whole_or_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": torch.ones(3)})
    monkeypatch.setattr(torch, "save", lambda content, file: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(path, {"x": torch.zeros(3)})
    monkeypatch.undo()
    assert torch.equal(load_checkpoint(path)["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "b.pt")
    torch.save({"version": 99}, path)
    with pytest.raises(ValueError, match="version 99"):
        load_checkpoint(path)


@pytest.mark.slow
def test_processes_share_the_batches_of_a_run(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps({**SMALL, "epochs": 2}))
    torchrun = "import runpy; runpy.run_module('torch.distributed.run', run_name='__main__', alter_sys=True)"
    command = ["--standalone", "--nproc-per-node", "2", "-m", "stompp_kernels.cli", "train", tmp_path / "small.json"]
    for _ in range(2):  # the second time it is resumed, and has ended
        options = ["--output", tmp_path / "run", "--device", "cpu", "--resume"]
        done = run_python(torchrun, *command, *options, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        assert "find_unused_parameters" not in done.stderr, "until the first commitment DDP would find none"
    assert [e["event"] for e in records(tmp_path / "run")][-2:] == ["resume", "end"]
    assert len(records(tmp_path / "run", "commit")) == 4
    result = json.loads((tmp_path / "run" / "result.json").read_text())["result"]
    assert result["accuracy"] == pytest.approx(round(result["accuracy"])), "each of 100 test images counts once"


# The command


def test_eval_convert_and_bench_of_a_run(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "_PROCESS", Path("/no/proc"))  # test_bench.py measures memory
    folder, result = finished
    for flags in ([], ["--packed"]):
        assert main(["eval", str(folder), *flags]) == 0
        assert f"accuracy {result['accuracy']:.2f} %" in capsys.readouterr().out
    output = tmp_path / "net.safetensors"
    assert main(["convert", str(folder), "--output", str(output)]) == 0
    assert f"{output.stat().st_size:,} bytes" in capsys.readouterr().out
    sk.load_packed(output)
    flags = ["--batch", "2", "--no-compile", "--seconds", "0.1", "--forms", "fp32", "packed"]
    assert main(["bench", str(folder), *flags]) == 0
    assert "packed, ms" in capsys.readouterr().out
    assert main(["eval", str(tmp_path)]) == 2
    assert "no run of `stompp train`" in capsys.readouterr().err


def test_a_run_says_what_it_trains_how_long_it_takes_and_how_it_ended(tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    assert main(["train", str(tmp_path / "small.json"), "--output", str(tmp_path / "run"), "--device", "cpu"]) == 0
    first, *evaluations, last = capsys.readouterr().out.splitlines()
    for part in ("small_resnet on digits", "256 training and 100 test", "on cpu", "12 steps", "4 layers", "refresh 1"):
        assert part in first
    assert str(tmp_path / "run") in first
    assert [re.match(r"(\d+)/12 loss .* \d/4 binary.* test .*% ETA \d:\d\d:\d\d$", e)[1] for e in evaluations] == [
        *("4", "8", "12")
    ]
    assert re.fullmatch(r"small: test \d+\.\d %, 4 of 4 layers binary, after \d:\d\d:\d\d of training", last)


def test_the_line_of_a_run_fits_a_terminal_of_80_columns():
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    with ProgressBar(console, 39000, 12345) as bar:
        bar.show(12345, 12.345, 45.6, sk.progression.Progress(12345, 18, 48, ("a",), 0.35, 0.31))
        bar.show_test(12345, 44.4)
    line = "12345/39000 loss 12.345 batch 46% 18/48 binary p 35% (31%) test 44.4% "
    shown = re.findall(re.escape(line) + r"[-\d]:[-\d]{2}:[-\d]{2}", file.getvalue())
    assert shown
    assert len(shown[-1]) <= 80


@pytest.mark.parametrize("total", [39000, 500400])
def test_the_lines_of_a_run_in_a_file_have_80_columns(total):
    file = io.StringIO()
    with ProgressBar(Console(file=file, width=200), total, 0) as bar:
        bar.show(total // 2, 2.345, 50.0, sk.progression.Progress(total // 2, 18, 48, ("a",), 0.35, 0.31))
        bar.show_test(total // 2, 44.4)
    (line,) = file.getvalue().splitlines()
    assert len(line) <= 80
    p = " p 35% (31%)" if total == 39000 else ""  # where there is room for it
    assert re.fullmatch(
        rf"{total // 2}/{total} loss 2.345 batch 50% 18/48 binary{re.escape(p)} test 44.4% ETA .*", line
    )


def test_a_packed_network_goes_into_a_folder_that_is_made(finished, tmp_path):
    folder, _ = finished
    assert main(["convert", str(folder), "--output", str(tmp_path / "new" / "a" / "net.safetensors")]) == 0
    size = (tmp_path / "new" / "a" / "net.safetensors").stat().st_size
    assert main(["eval", str(folder), "--packed"]) == 0
    noted = json.loads((folder / "packed.json").read_text())
    assert noted == {"bytes": size, "accuracy": json.loads((folder / "result.json").read_text())["result"]["accuracy"]}


def test_resume_names_what_it_needs(tmp_path, capsys):
    assert main(["train", "--resume"]) == 2
    assert "--resume needs the run's recipe, or --output with the folder of a run" in capsys.readouterr().err
    assert main(["train", "--resume", "--output", str(tmp_path)]) == 2
    assert f"the folder of a run: {str(tmp_path)!r} has no recipe.json" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "epochs = ", "extends = 'third.toml'"])
def test_an_error_in_what_a_recipe_extends_names_the_recipe(tmp_path, content):
    (tmp_path / "mine.toml").write_text('extends = "base.toml"')
    if content is not None:
        (tmp_path / "base.toml").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=r"mine\.toml' extends 'base\.toml'"):
        read_recipe(tmp_path / "mine.toml")


def test_train_from_flags_resumes_without_a_recipe_and_says_what_is_wrong(tmp_path, capsys):
    flags = ["--model", "mlp", "--dataset", "digits", "--epochs", "1", "--batch-size", "256", "--device", "cpu"]
    assert main(["train", *flags, "--output", str(tmp_path / "a")]) == 0
    assert main(["train", "--resume", "--output", str(tmp_path / "a")]) == 0
    assert records(tmp_path / "a")[-1]["event"] == "end"
    capsys.readouterr()
    assert main(["train", *flags, "--output", str(tmp_path / "b"), "--set", "data.path=$STOMPP_NOT_SET"]) == 2
    assert "data.path is '$STOMPP_NOT_SET'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_tensorboard_gets_the_records(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(small(epochs=1), tmp_path / "run", tensorboard=True)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"step/loss", "step/p", "evaluation/accuracy", "diagnostics/frozen/00"} <= tags
    assert board.Scalars("evaluation/accuracy")[-1].step == 4


# Studies


def test_a_study_is_variants_times_a_grid_times_seeds(tmp_path):
    study = {
        **SMALL,
        "seeds": [0, 1],
        "grid": {"progression.order": ["forward", "reverse"]},
        "variants": {
            "free": {"progression.regime": "ste_free"},
            "approx": {"progression": {"surrogate": "approx_sign"}},
        },
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    recipes = read_study(tmp_path / "study.json", ["epochs=2"])
    assert len({recipe.name for recipe in recipes}) == len(recipes) == 8
    assert [recipe.seed for recipe in recipes] == [0] * 4 + [1] * 4
    assert recipes[1].name == "free_order-reverse_seed0"
    assert {(r.progression.order, r.progression.surrogate, r.epochs) for r in recipes} == {
        (order, surrogate, 2) for order in ("forward", "reverse") for surrogate in ("clip", "approx_sign")
    }
    with pytest.raises(ValueError, match=r"progression\.order must be a list"):
        read_study(tmp_path / "study.json", ["grid.progression.order=reverse"])


def test_the_parts_of_a_study_are_its_runs_and_their_commands_can_be_had(tmp_path, capsys):
    study = tmp_path / "study.json"
    study.write_text(json.dumps({**SMALL, "epochs": 1, "seeds": [0, 1, 2], "variants": {"a": {}, "b": {}}}))
    base = ["ablate", str(study), "--output", str(tmp_path / "out"), "--device", "cpu"]
    seen = []
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        assert main([*base, "--shard", shard, "--print-commands"]) == 0
        seen.append(capsys.readouterr().out.splitlines())
    assert [len(lines) for lines in seen] == [2, 2, 1, 1]
    assert main([*base, "--print-commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(line for part in seen for line in part)
    assert main(shlex.split(lines[0])[1:]) == 0
    assert json.loads((tmp_path / "out" / "a_seed0" / "result.json").read_text())["result"]["steps"] == 4
    capsys.readouterr()
    assert main([*base, "--print-commands"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[1:], "what is finished is not started again"
    for shard in ("0/2", "3/2", "1", "1/2/3"):
        assert main([*base, "--shard", shard]) == 2
        assert f"shard must be i/n with i from 1 to n, got {shard!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"model.name": "resnet21"}, "name must be one of"),
        ({"model.options.depth": 3}, "model.options of 'small_resnet' must be among"),
        ({"data.options.size": 3}, "options of data set 'digits' must be among"),
        ({"progression.refresh": 0}, "progression.refresh must be at least 1, got 0"),
    ],
)
def test_values_of_a_study_are_checked_before_its_first_run(variant, message, tmp_path, capsys):
    (tmp_path / "study.json").write_text(json.dumps({**SMALL, "variants": {"good": {}, "bad": variant}}))
    assert main(["ablate", str(tmp_path / "study.json"), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class ForkedRun:
    """A run of a study, with what ``ablate`` asks of a process. test_cli_errors.py has those that it starts itself."""

    def __init__(self, recipe, folder, jobs, device):
        words = ablate._arguments(recipe, folder, device)
        self.process = start_stompp(*words, output=folder / ablate.OUTPUT)

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)


@pytest.mark.slow
def test_ablate_runs_what_is_not_finished_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "_start", ForkedRun)
    study = {**SMALL, "epochs": 1, "seeds": [0], "variants": {"good": {}, "bad": {"optimizer.lr": -1.0}}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=r"optimizer\.lr must be positive"):
        read_study(tmp_path / "study.json")
    study["variants"]["bad"] = {"data.options": {"train_limit": 1}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    paths = [str(tmp_path / "study.json"), "--output", str(tmp_path / "out")]
    command = ["ablate", *paths, "--jobs", "2", "--device", "cpu"]
    assert main(command) == 1
    assert "1 of 2 runs failed: bad_seed0" in capsys.readouterr().err
    assert "batch_size must be" in (tmp_path / "out" / "bad_seed0" / "output.txt").read_text()
    assert (tmp_path / "out" / "report" / "report.html").exists()
    result = tmp_path / "out" / "good_seed0" / "result.json"
    before = result.stat().st_mtime_ns
    assert main(command) == 1
    assert result.stat().st_mtime_ns == before, "a finished run is not run again"
    assert main([*command, "--set", "optimizer.lr=0.2"]) == 1
    assert "2 of 2 runs failed" in capsys.readouterr().err
    assert "another recipe: optimizer.lr is 0.1, got 0.2" in (result.parent / "output.txt").read_text()
    assert result.stat().st_mtime_ns == before, "a run of another recipe is kept"
