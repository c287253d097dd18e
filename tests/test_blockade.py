"""Studies of the gradient blockade: one activation is set apart, put in as a blockade or taken out as one."""

import json
import signal

import numpy as np
import pytest
import torch
from report_page import Page
from rich.console import Console

from stompp_kernels.cli import main
from stompp_kernels.nn import Stage
from stompp_kernels.training import trainer
from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.processes import Stopped
from stompp_kernels.training.recipe import recipe_from_dict
from stompp_kernels.training.report import write_report
from stompp_kernels.training.trained import load_trained
from stompp_kernels.training.trainer import train

SMALL = {
    "name": "small",
    "model": {"name": "small_resnet", "options": {"widths": [8, 8], "strides": [1, 2]}},
    "data": {"name": "digits", "options": {"train_limit": 256, "test_limit": 100}},
    "epochs": 3,
    "batch_size": 64,
    "log_every": 3,
    "diagnostics_every": 3,
}


def small(unit, surrogate="none", rest="soft", start=0.3, **changes):
    blockade = {"unit": unit, "surrogate": surrogate, "rest": rest, "start": start}
    return recipe_from_dict({**SMALL, "blockade": blockade, **changes})


def run(recipe, folder, **options):
    return train(recipe, folder, device="cpu", console=Console(quiet=True), **options)


def diagnostics(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["event"] == "diagnostics"}


def reached(norms):
    return [norm is not None for norm in norms]


# Units 1 and 3 read the input of a block, which nothing goes around; 2 and 4 lie inside one, beside its shortcut.
@pytest.mark.parametrize(
    ("unit", "gradients"),
    [
        (0, [True, True, True, True]),
        (1, [True, True, True, True]),
        (3, [False, False, True, True]),
        (4, [True, True, False, True]),
    ],
)
def test_a_blockade_in_a_soft_network_cuts_off_what_lies_behind_it(unit, gradients, tmp_path):
    result = run(small(unit), tmp_path / "run")
    assert (result["frontier"], result["units"]) == (0, 4)
    seen = diagnostics(tmp_path / "run")
    assert reached(seen[3]["gradient_norm"]) == [True] * 4, "the activation is committed after step 4"
    assert [reached(seen[step]["gradient_norm"]) for step in (6, 9, 12)] == [gradients] * 3
    model, _, _ = load_trained(tmp_path / "run")
    stages = {name: module.stage for name, module in model.named_modules() if hasattr(module, "stage")}
    assert sorted(stages.values()) == sorted([Stage.SOFT] * (8 - (unit > 0)) + [Stage.BINARY] * (unit > 0))


def test_a_surrogate_takes_the_blockade_out_and_leaves_the_hard_signs(tmp_path):
    for surrogate in ("none", "clip"):
        run(small(3, surrogate), tmp_path / surrogate)
    blocked, passed = (diagnostics(tmp_path / surrogate)[12] for surrogate in ("none", "clip"))
    assert reached(blocked["gradient_norm"]) == [False, False, True, True]
    assert reached(passed["gradient_norm"]) == [True] * 4
    assert blocked["frozen"] == passed["frozen"]


def test_one_blockade_of_a_progression_is_taken_out(tmp_path):
    for unit in (0, 3):
        recipe = small(unit, "clip", "progression", progression={"order": "reverse", "cooldown": 0.0})
        assert run(recipe, tmp_path / str(unit))["frontier"] == 4
    plain, apart = (diagnostics(tmp_path / unit) for unit in "03")
    # Units 4 and 3 are committed after steps 3 and 6, unit 2 after 9.
    assert reached(plain[9]["gradient_norm"]) == [False, False, False, False]
    assert reached(apart[9]["gradient_norm"]) == [True, True, False, False]


def test_a_run_with_a_blockade_is_resumed_to_the_same_bits(tmp_path, monkeypatch, restore_threads):
    torch.set_num_threads(1)
    run(small(3), tmp_path / "whole")
    step = trainer.Run._train_step
    for stop in (2, 7):  # before and after the commitment

        def step_and_stop(self, inputs, labels, stop=stop):
            step(self, inputs, labels)
            if self.step == stop:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Run, "_train_step", step_and_stop)
            with pytest.raises(Stopped, match=f"at step {stop}"):
                run(small(3), tmp_path / "broken", resume=True)
    run(small(3), tmp_path / "broken", resume=True)
    whole, broken = (load_checkpoint(tmp_path / name / LAST)["model"] for name in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["blockade.unit=-1"], "blockade.unit must not be negative, got -1"),
        (["blockade.unit=9"], "blockade.unit must be at most 4 for this model, got 9"),
        (["blockade.unit=1", "blockade.surrogate=relu"], "blockade.surrogate must be one of"),
        (["blockade.unit=1", "blockade.start=1"], "blockade.start must be in [0, 1), got 1.0"),
        (["blockade.unit=1", "blockade.rest=hard"], "blockade.rest must be one of 'soft', 'progression', got 'hard'"),
        (["blockade.unit=1", "model.binarize=weights"], "model.binarize must be one of 'both', got 'weights'"),
        (
            ["blockade.unit=1", "blockade.rest=progression", "progression.regime=ste"],
            "progression.regime must be one of",
        ),
        (["blockade.unit=1", "progression.order=reverse"], "progression.order has no effect with blockade.rest=soft"),
        (["blockade.surrogate=clip"], "the recipe must have 'blockade.unit'"),
    ],
)
def test_a_wrong_blockade_is_named(changes, message, tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    flags = [flag for change in changes for flag in ("--set", change)]
    command = ["train", str(tmp_path / "small.json"), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*command, *flags]) == 2
    assert message in capsys.readouterr().err


def write_run(folder, unit, surrogate, seed, accuracy, norms):
    recipe = {
        "name": f"{surrogate}_{unit}_seed{seed}",
        "seed": seed,
        "blockade": {"unit": unit, "surrogate": surrogate, "rest": "soft", "start": 0.5},
    }
    start = {"recipe": recipe, "units": list("abcd"), "windows": [[8, 8]] * 4, "total_steps": 8, "num_classes": 10}
    log = [{"event": "start", "step": 0, **start}]
    for step in (2, 4, 6, 8):
        values = {name: [0.5] * 4 for name in ("frozen", "flip_ratio", "saturation")}
        log.append({"event": "diagnostics", "step": step, "gradient_norm": [9.0] * 4 if step <= 4 else norms, **values})
    log.append({"event": "end", "step": 8, "accuracy": accuracy, "best_accuracy": accuracy, "seconds": 1.0})
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    return folder


def test_the_report_shows_accuracy_and_gradients_against_the_unit(tmp_path):
    from matplotlib.image import imread

    runs = []
    for seed in range(2):
        runs += [
            write_run(tmp_path / f"soft{seed}", 0, "none", seed, 90.0 + seed, [1.0, 2.0, 3.0, 4.0]),
            write_run(tmp_path / f"in{seed}", 3, "none", seed, 70.0 + seed, [None, None, 3.0, 5.0]),
            write_run(tmp_path / f"out{seed}", 3, "clip", seed, 88.0 + seed, [0.5, 0.7, 3.0, 5.0]),
        ]
    files = {path.name: path for path in write_report(runs, tmp_path / "out")}
    assert imread(files["blockade.png"]).std() > 0.01
    numbers = [group["blockade"] for group in json.loads(files["report.json"].read_text())["groups"]]
    assert [(b["unit"], b["surrogate"], b["gradient_behind"], b["gradient_ahead"]) for b in numbers] == [
        (0, None, 2.5, 2.5),
        (3, "none", 0.0, 4.0),
        (3, "clip", pytest.approx(0.6), 4.0),
    ], "records before the commitment do not count"
    rows = Page(files["report.html"].read_text()).rows("gradient behind")
    assert [(row["unit"], row["gradient"], row["final"], row["change"]) for row in rows] == [
        ("", "", "90.5 ± 0.7 (2)", ""),
        ("3", "none", "70.5 ± 0.7 (2)", "-20.0"),
        ("3", "clip", "88.5 ± 0.7 (2)", "-2.0"),
    ]
    assert [row["gradient behind"] for row in rows] == ["2.5e+00", "0.0e+00", "6.0e-01"]


@pytest.mark.parametrize(
    "blockade", [[], {}, {"unit": -1, "start": 0}, {"unit": 1.5, "start": 0}, {"unit": 1}], ids=str
)
def test_a_forged_blockade_in_a_log_is_an_error(blockade, tmp_path):
    run = write_run(tmp_path / "run", 1, "none", 0, 50.0, [1.0] * 4)
    first, *rest = (run / "log.jsonl").read_text().splitlines()
    start = json.loads(first)
    start["recipe"]["blockade"] = blockade
    (run / "log.jsonl").write_text("\n".join([json.dumps(start), *rest]) + "\n")
    with pytest.raises(ValueError, match=r"log\.jsonl, line 1: recipe\.blockade must h"):
        write_report([run], tmp_path / "out")


def test_a_report_without_blockades_has_no_such_figure(tmp_path):
    run(recipe_from_dict({**SMALL, "epochs": 1}), tmp_path / "run")
    names = {path.name for path in write_report([tmp_path / "run"], tmp_path / "out")}
    assert "blockade.png" not in names
    assert "loss.png" in names
    assert np.isfinite(json.loads((tmp_path / "out" / "report.json").read_text())["groups"][0]["accuracy"])
