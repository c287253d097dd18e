"""Studies that Ray runs: a worker is killed in the middle, and the results are those of runs one after the other."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch
from rich.console import Console

from stompp_kernels.cli import main
from stompp_kernels.training.ablate import read_study, run_study
from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.folder_lock import NAME, FolderInUseError, locked, wait_until_free
from stompp_kernels.training.ray_engine import _share
from stompp_kernels.training.trainer import train

QUIET = Console(quiet=True)
STUDY = {
    "name": "study",
    "model": {"name": "mlp", "options": {"widths": [16, 16, 16]}},
    "data": {"name": "digits", "options": {"train_limit": 256, "test_limit": 100}},
    "epochs": 20,
    "batch_size": 64,
    "checkpoint_every": 0.5,
    "seeds": [0, 1, 2, 3],
    "variants": {"ste_free": {}, "ste": {"progression.regime": "ste"}},
}


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(STUDY))
    return path


def test_without_ray_nothing_is_run_and_the_error_says_what_adds_it(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["ablate", str(study), "--output", str(tmp_path / "out"), "--engine", "ray", "--device", "cpu"]
    assert main(command) == 2
    assert 'engine "ray" needs Ray: pip install "stompp_kernels[ray]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--print-commands"]) == 2
    assert "engine has no effect with print_commands, got 'ray'" in capsys.readouterr().err


def test_runs_share_a_machine_in_whole_parts_or_fractions_of_one():
    assert [_share(16, jobs) for jobs in (1, 3, 16, 48)] == [16, 5, 1, 0.3333]
    assert 3 * _share(2.0, 3) <= 2


def test_a_run_waits_for_the_process_before_it_to_let_go_of_its_folder(tmp_path):
    with locked(tmp_path / "run"):
        before = time.monotonic()
        wait_until_free(tmp_path / "run", 0.2)
        assert time.monotonic() - before >= 0.2
        with pytest.raises(FolderInUseError, match="is in use by another run"), locked(tmp_path / "run"):
            pass
    before = time.monotonic()
    wait_until_free(tmp_path / "run", 60.0)
    assert time.monotonic() - before < 30


def kill_a_worker(folder, killed):
    """Kills the process of the first run that has a checkpoint, and notes the run's name."""
    while not killed:
        for lock in folder.glob(f"*/{NAME}"):
            with suppress(FileNotFoundError, ProcessLookupError):  # the run has just ended
                if (lock.parent / LAST).exists():
                    os.kill(int(lock.read_text()), signal.SIGKILL)
                    killed.append(lock.parent.name)
                    return
        time.sleep(0.02)


@pytest.mark.slow
def test_a_worker_is_killed_and_all_results_are_those_of_serial_runs(study, tmp_path, monkeypatch, restore_threads):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'stompp_kernels[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    killed: list[str] = []
    watch = threading.Thread(target=kill_a_worker, args=(tmp_path / "out", killed), daemon=True)
    torch.set_num_threads(1)  # as runs that have one core each
    recipes = read_study(study)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        watch.start()
        failed = run_study(recipes, tmp_path / "out", 2, "cpu", QUIET, engine="ray")
    finally:
        ray.shutdown()
    assert failed == []
    (name,) = killed
    log = (tmp_path / "out" / name / "log.jsonl").read_text().splitlines()
    assert "resume" in [json.loads(line)["event"] for line in log], "the run went on from its checkpoint"
    assert (tmp_path / "out" / "report" / "report.html").exists()
    for recipe in recipes:
        serial = train(recipe, tmp_path / "serial" / recipe.name, device="cpu", console=QUIET)
        saved = json.loads((tmp_path / "out" / recipe.name / "result.json").read_text())["result"]
        assert {**saved, "seconds": 0} == {**serial, "seconds": 0}
        weights = [load_checkpoint(tmp_path / part / recipe.name / LAST)["model"] for part in ("out", "serial")]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
