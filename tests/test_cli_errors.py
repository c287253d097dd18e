"""How commands end: errors of the system and signals, one line and a status each, and nothing is lost."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_training import SMALL, records, run, small

from stompp_kernels.cli import main
from stompp_kernels.signals import Stopped
from stompp_kernels.training import trainer
from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.folder_lock import locked

CLI = [sys.executable, "-m", "stompp_kernels.cli"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(small(epochs=2), folder)
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**SMALL, "epochs": 2}))
    return path


def one_line(capsys, *parts):
    """Stderr is one line that begins as the command's do, and has each part."""
    error = capsys.readouterr().err
    assert error.startswith("stompp: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    for part in parts:
        assert part in error
    return error


# Files that cannot be written


def commands(recipe, finished, output):
    """Every command that writes, with where it is to."""
    return {
        "train": ["train", str(recipe), "--device", "cpu", "--output", output],
        "ablate": ["ablate", str(recipe), "--device", "cpu", "--output", output],
        "report": ["report", str(finished), "--output", output],
        "convert": ["convert", str(finished), "--output", output],
        "bench": ["bench", "mlp", "--no-compile", "--seconds", "0.1", "--output", output],
        "demo": ["demo", "--epochs", "1", "--output", output],
        "demo results": ["demo", "--epochs", "1", "--results", output],
    }


COMMANDS = tuple(commands("", "", ""))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_made_is_one_line_before_any_work(
    command, recipe, finished, tmp_path, monkeypatch, capsys
):
    def work(*arguments, **options):
        raise AssertionError("work was done")

    monkeypatch.setattr("stompp_kernels.bench.command.measure", work)
    monkeypatch.setattr(trainer.Run, "_train_step", work)
    file = tmp_path / "file"
    file.write_text("mine")
    for output in (f"{file}/inside", "/proc/no/such", "/dev/full"):
        assert main(commands(recipe, finished, output)[command]) == 2
        one_line(capsys, output.split("/")[-1] if output != f"{file}/inside" else "file")
    folders = command in ("train", "ablate", "report")
    assert main(commands(recipe, finished, str(file) if folders else str(tmp_path))[command]) == 2
    one_line(capsys, "must be a folder, got the file" if folders else "is a folder")
    assert file.read_text() == "mine"
    assert os.path.exists("/dev/full")
    assert not os.path.isfile("/dev/full")


def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_to_the_same_bits(recipe, finished, tmp_path, capfd):
    folder = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = (finished / LAST).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole // 2, limits[1]))  # as a disk with little room would
    try:
        command = ["train", str(recipe), "--device", "cpu", "--output", str(folder)]
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capfd.readouterr().err
    assert error.startswith("stompp: ")
    assert error.count("\n") == 1
    assert "checkpoint_" in error
    assert "File too large" in error
    assert not any(path.name.startswith(".") for path in folder.iterdir())
    assert main([*command, "--resume"]) == 0
    a, b = (load_checkpoint(path / LAST)["model"] for path in (finished, folder))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_log_that_cannot_be_written_is_one_line_with_its_path(recipe, tmp_path, monkeypatch, capsys):
    real = trainer.RunLog.write

    def full_at_3(self, event, step, **values):
        if step >= 3:
            self._file.close()
            self._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 - the log closes it
        real(self, event, step, **values)

    monkeypatch.setattr(trainer.RunLog, "write", full_at_3)
    assert main(["train", str(recipe), "--device", "cpu", "--output", str(tmp_path / "run")]) == 2
    one_line(capsys, "log.jsonl", "No space left on device")


# Standard output


def full_device():
    return open("/dev/full", "w")


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize(("make", "status"), [(full_device, 2), (closed_pipe, 128 + signal.SIGPIPE)])
@pytest.mark.parametrize("command", ["info", "eval", "convert", "report", "bench", "help"])
def test_a_standard_output_that_cannot_be_written(command, make, status, finished, tmp_path, monkeypatch, capsys):
    lines = {
        "info": ["info"],
        "eval": ["eval", str(finished)],
        "convert": ["convert", str(finished), "--output", str(tmp_path / "a.safetensors")],
        "report": ["report", str(finished), "--output", str(tmp_path / "report")],
        "bench": ["bench", str(finished), "--no-compile", "--batch", "1", "--seconds", "0.05", "--forms", "packed"],
        "help": ["--help"],
    }
    with make() as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(lines[command]) == status
        output.flush()  # nothing is left to fail at the interpreter's end
    monkeypatch.undo()
    if status == 2:
        one_line(capsys, "No space left on device")
    else:
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("make", "status"), [(full_device, 2), (closed_pipe, 128 + signal.SIGPIPE)])
def test_a_run_without_a_standard_output_stops_with_a_checkpoint(make, status, recipe, finished, tmp_path, monkeypatch):
    command = ["train", str(recipe), "--device", "cpu", "--output", str(tmp_path / "run")]
    with make() as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(command) == status
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "run" / LAST)["step"] == 4, "the step of the first line"
    assert main([*command, "--resume"]) == 0
    a, b = (load_checkpoint(path / LAST)["model"] for path in (finished, tmp_path / "run"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_the_interpreter_s_end_adds_nothing():
    for flags in ({}, {"PYTHONUNBUFFERED": "1"}):
        environment = {key: value for key, value in ONE_THREAD.items() if key != "PYTHONUNBUFFERED"} | flags
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*CLI, "info"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
            )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["bench", "convert", "eval", "report"])
def test_a_signal_ends_a_command_in_one_line_without_leftovers(
    command, number, finished, tmp_path, monkeypatch, capsys
):
    def killed(*arguments, **options):
        os.kill(os.getpid(), number)
        time.sleep(5)

    where = {
        "bench": "stompp_kernels.bench.command.measure",
        "convert": "os.fsync",  # in the middle of writing the file
        "eval": "stompp_kernels.training.trained.evaluate",
        "report": "stompp_kernels.training.report.write.page",
    }
    lines = commands("", finished, str(tmp_path / "out")) | {"eval": ["eval", str(finished)]}
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr(where[command], killed)
    assert main(lines[command]) == 128 + number
    monkeypatch.undo()
    one_line(capsys, f"stopped by {number.name}")
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_nohup_keeps_a_run_from_sighup(tmp_path, monkeypatch):
    step = trainer.Run._train_step

    def hang_up(self, *batch):
        step(self, *batch)
        os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(trainer.Run, "_train_step", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(small(epochs=1), tmp_path / "a")["steps"] == 4
    finally:
        signal.signal(signal.SIGHUP, before)
    with pytest.raises(Stopped, match="stopped by SIGHUP at step 1"):
        run(small(epochs=1), tmp_path / "b")


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def has_steps(folder):
    path = folder / "log.jsonl"
    return path.exists() and b'"step", "step"' in path.read_bytes()


@pytest.mark.slow
def test_a_clean_stop_is_one_line_and_no_warning(tmp_path):
    flags = [
        "--model",
        "mlp",
        "--dataset",
        "digits",
        "--epochs",
        "3000",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "a"),
    ]
    process = subprocess.Popen(
        [*CLI, "train", *flags], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ONE_THREAD
    )
    wait_for(lambda: has_steps(tmp_path / "a"), process)
    assert main(["train", *flags, "--resume"]) == 2, "a second run in the folder is refused"
    process.send_signal(signal.SIGHUP)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGHUP
    assert error.startswith(b"stompp: stopped by SIGHUP at step ")
    assert error.count(b"\n") == 1
    assert load_checkpoint(tmp_path / "a" / LAST)["step"] > 0
    assert not (tmp_path / "a" / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_study_that_is_stopped_stops_its_runs_and_starts_no_more(number, to_all, tmp_path):
    study = {**SMALL, "epochs": 3000, "seeds": [0, 1, 2]}
    (tmp_path / "study.json").write_text(json.dumps(study))
    command = [
        "ablate",
        str(tmp_path / "study.json"),
        "--output",
        str(tmp_path / "out"),
        "--jobs",
        "2",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*CLI, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ONE_THREAD, start_new_session=True
    )
    folders = [tmp_path / "out" / f"small_seed{seed}" for seed in range(3)]
    wait_for(lambda: all(map(has_steps, folders[:2])), process)
    assert main(command) == 2, "a second study in the folder is refused"
    if to_all:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert error.startswith(f"stompp: stopped by {number.name} with 3 runs to finish".encode())
    assert error.count(b"\n") == 1
    for folder in folders[:2]:
        with locked(folder):  # its process has ended
            assert load_checkpoint(folder / LAST)["step"] == records(folder)[-1]["step"]
    assert not folders[2].exists()


# The lock


def test_a_folder_in_use_is_refused_and_what_only_reads_is_not(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    with locked(folder):
        with pytest.raises(ValueError, match=f"run' is in use by another run, process {os.getpid()}: "):
            run(small(), folder)
        with pytest.raises(ValueError, match="is in use by another run"):
            run(small(), folder, resume=True)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.exists(), "nothing was written, and the folder was made for the lock"
    with locked(finished):
        assert main(["eval", str(finished)]) == 0
        assert main(["report", str(finished), "--output", str(tmp_path / "report")]) == 0
        assert main(["train", "--resume", "--output", str(finished)]) == 2
    one_line(capsys, "in use by another run")
    assert not (finished / ".lock").exists()


def test_a_lock_dies_with_its_process_and_not_with_its_children(tmp_path):
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            if os.fork() == 0:  # as a data set's worker, which outlives its parent a while
                os.write(write, b"%d\n" % os.getpid())
                time.sleep(60)
                os._exit(0)
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(ready, 20))
    try:
        with pytest.raises(ValueError, match=f"in use by another run, process {child}"), locked(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with locked(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    finally:
        os.kill(worker, signal.SIGKILL)


# Values given twice, or without an effect


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "8", "--set", "epochs=80"], "epochs is given twice, as 'epochs=80' and as 'epochs=8'"),
        (["--set", "epochs=80", "--set", "epochs = 8"], "epochs is given twice"),
        (["--lr", "0.2", "--set", "optimizer={lr=0.1}"], "optimizer is given twice"),
        (["--model", "mlp", "--set", "model.name=resnet20"], "model.name is given twice"),
        (
            ["--surrogate", "clip", "--regime", "ste_free"],
            "progression.surrogate has no effect with progression.regime",
        ),
        (["--order", "reverse", "--regime", "vanilla_ste"], "progression.order has no effect"),
        (["--set", "optimizer.momentum=0.5", "--set", "optimizer.name=adam"], "optimizer.momentum has no effect"),
    ],
)
def test_a_value_that_would_be_lost_is_refused(flags, message, recipe, tmp_path, capsys):
    assert main(["train", str(recipe), *flags, "--output", str(tmp_path / "run")]) == 2
    one_line(capsys, message)
    assert not (tmp_path / "run").exists()


def test_a_flag_given_twice_is_refused(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe), "--epochs", "8", "--epochs", "80"])
    assert ended.value.code == 2
    assert "argument --epochs: is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("study", "flags", "message"),
    [
        ({"grid": {"epochs": [1, 2]}}, ["--epochs", "8"], "epochs is set by the grid and by the command"),
        ({"variants": {"a": {"epochs": 1}}}, ["--epochs", "8"], "epochs is set by variant 'a' and by the command"),
        (
            {"variants": {"a": {"epochs": 1}}},
            ["--grid", "epochs=[1, 2]"],
            "epochs is set by variant 'a' and by the grid",
        ),
        ({"seeds": [0, 1]}, ["--seed", "3"], "seed is given, but the study"),
        ({"grid": {"seed": [1, 2]}}, [], "seed is set by the grid and by the study"),
        ({"variants": {"a": {"name": "b"}}}, [], "name is set by variant 'a' and by the study"),
        ({}, ["--grid", "epochs=[1]", "--epochs", "8"], "is given twice"),
        ({}, ["--grid", "epochs=[1]", "--grid", "epochs=[2]"], "grid.epochs is given twice"),
        ({"seeds": [0, 0]}, [], "two would be in 'small_seed0'"),
        ({"grid": {"model.name": ["a b", "a/b"]}}, [], "two would be in 'name-a-b_seed0'"),
        ({"variants": [1]}, [], "variants must hold a table for each"),
        ({"grid": {"data": {"name": ["digits"]}, "data.name": ["digits"]}}, [], "grid sets data.name twice"),
        ({}, ["--jobs", "0"], "jobs must be at least 1"),
    ],
)
def test_a_value_that_a_study_would_lose_is_refused(study, flags, message, tmp_path, capsys):
    (tmp_path / "study.json").write_text(json.dumps({**SMALL, **study}))
    assert main(["ablate", str(tmp_path / "study.json"), *flags, "--output", str(tmp_path / "out")]) == 2
    one_line(capsys, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["mlp", "--shape", "3", "8", "8"], "shape has no effect on a registered model, got [3, 8, 8] with 'mlp'"),
        (["mlp", "--checkpoint", "last"], "checkpoint has no effect on a registered model"),
        (["mlp", "--data", "x"], "data has no effect on a registered model"),
        (["RUN", "--classes", "10"], "num_classes has no effect on the folder of a run"),
        (["RUN", "--shape", "3"], "shape has no effect on the folder of a run"),
        (["no.safetensors", "--classes", "10"], "num_classes has no effect on a packed file"),
    ],
)
def test_an_option_of_bench_for_another_kind_of_network_is_refused(flags, message, finished, capsys):
    assert main(["bench", *(flag.replace("RUN", str(finished)) for flag in flags)]) == 2
    one_line(capsys, message)


def test_the_demo_refuses_a_surrogate_that_its_regime_has_not(capsys):
    assert main(["demo", "--regime", "ste_free", "--surrogate", "clip"]) == 2
    one_line(capsys, "surrogate has no effect with regime 'ste_free'")


# Damaged files of a run and of a study


@pytest.fixture
def folder(finished, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for path in finished.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


GARBAGE = {
    "text": b"garbage\n",
    "NUL bytes": bytes(200) + b"\n",
    "not UTF-8": b'{"event": "\xff"}\n',
    "half a record": b'{"event": "st\n',
    "brackets": b"[" * 200_000 + b"\n",
    "a list": b"[1]\n",
    "a step of text": b'{"event": "step", "step": "1"}\n',
    "a negative step": b'{"event": "step", "step": -1}\n',
    "an endless step": b'{"event": "step", "step": Infinity}\n',
    "no step": b'{"event": "step"}\n',
    "a commit of no unit": b'{"event": "commit", "step": 3, "index": 99}\n',
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_in_a_log_is_one_line_with_its_number(case, folder, tmp_path, capsys):
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "log.jsonl").write_bytes(b"".join([*lines[:2], GARBAGE[case], *lines[2:]]))
    assert main(["report", str(folder), "--output", str(tmp_path / "report")]) == 2
    assert len(one_line(capsys, "log.jsonl, line 3: ")) < 500
    if "commit" not in case:  # which the run does not read
        before = (folder / "log.jsonl").read_bytes()
        assert main(["train", "--resume", "--device", "cpu", "--output", str(folder)]) == 2
        one_line(capsys, "log.jsonl, line 3: ")
        assert (folder / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("end", [b'{"event": "st', bytes(500), b"\xff\xfe", b'{"event": "step", "step": 4'])
def test_a_log_that_a_kill_cut_short_is_gone_on_with(end, folder, tmp_path):
    content = (folder / "log.jsonl").read_bytes()
    (folder / "log.jsonl").write_bytes(content + end)
    assert main(["report", str(folder), "--output", str(tmp_path / "report")]) == 0
    assert main(["train", "--resume", "--device", "cpu", "--output", str(folder)]) == 0
    events = [record["event"] for record in records(folder)]
    assert events[-3:] == ["evaluation", "resume", "end"] or events[-2:] == ["resume", "end"]


START = {
    "windows past the end": ({"windows": [[0, 1 << 40]] * 4}, "windows must be in"),
    "windows that go back": ({"windows": [[5, 2]] * 4}, "windows must be in"),
    "a recipe of text": ({"recipe": "x"}, "recipe must hold keys and values"),
    "a model of text": ({"recipe": {"model": "x"}}, "recipe.model must hold keys and values"),
    "a seed of text": ({"recipe": {"seed": "x"}}, "recipe.seed must be a number"),
    "no classes": ({"num_classes": 0}, "num_classes must be a positive int"),
    "endless steps": ({"total_steps": float("inf")}, "cannot convert float infinity"),
}


@pytest.mark.parametrize("case", START)
def test_a_start_record_of_nonsense_is_one_line(case, folder, tmp_path, capsys):
    change, message = START[case]
    first, *rest = (folder / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]) + "\n")
    assert main(["report", str(folder), "--output", str(tmp_path / "report")]) == 2
    one_line(capsys, "log.jsonl, line 1: ", message)


def test_windows_longer_than_the_records_take_no_memory(folder, tmp_path):
    first, *rest = (folder / "log.jsonl").read_text().splitlines()
    change = {"windows": [[0, 1 << 40]] * 4, "total_steps": 1 << 40}
    (folder / "log.jsonl").write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]) + "\n")
    assert main(["report", str(folder), "--output", str(tmp_path / "report")]) == 0


def test_a_huge_log_is_refused_by_its_first_line(folder, tmp_path, capsys):
    with open(folder / "log.jsonl", "r+b") as file:
        file.truncate(0)
        file.truncate(1 << 40)
    assert main(["report", str(folder), "--output", str(tmp_path / "report")]) == 2
    one_line(capsys, "log.jsonl, line 1: ")


BAD_RECIPES = {
    "a.toml": (b"epochs = \xff", "is not in UTF-8"),
    "b.toml": (b"x = " + b"[" * 100_000, "'.*b.toml' is n"),
    "c.json": (b"[" * 100_000, "is nested too deeply"),
    "d.json": (b'{"a": 1} x', "no valid JSON"),
    "e.yaml": (b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (k, k, *[k - 1] * 8) for k in range(ord("b"), ord("k"))
    ), "at most 100000 values"),
    "f.yaml": (b"a: 2020-13-45\nb: 2020-01-01\n", "valid YAML|must hold strings"),
    "g.yaml": (b"1: 2\n", "must have strings as keys, got 1"),
    "h.toml": (b"extends = 5\n", "must extend a file, got 5"),
    "i.toml": (b"a = 2020-01-01\n", "must hold strings, numbers and booleans, got a"),
    "j.toml": (bytes(1 << 25), "must have at most 16777216 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RECIPES)
@pytest.mark.parametrize("command", ["train", "ablate"])
def test_a_bad_recipe_is_one_line_with_its_path(name, command, tmp_path, capsys):
    content, message = BAD_RECIPES[name]
    (tmp_path / name).write_bytes(content)
    assert main([command, str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
    error = one_line(capsys, name)
    assert re.search(message, error)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"recipe": 3}', b"\xff", bytes(100)])
def test_a_damaged_result_or_recipe_of_a_run_is_one_line_with_its_path(content, folder, recipe, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (folder / "result.json").write_bytes(content)
    folder.rename(tmp_path / "out" / "small_seed0")
    assert main(["ablate", str(recipe), "--output", str(tmp_path / "out")]) == 2
    one_line(capsys, "result.json")
    (tmp_path / "out" / "small_seed0" / "recipe.json").write_bytes(content)
    for command in (["eval", "FOLDER"], ["train", "--resume", "--output", "FOLDER"]):
        assert main([part.replace("FOLDER", str(tmp_path / "out" / "small_seed0")) for part in command]) == 2
        one_line(capsys, "recipe")
