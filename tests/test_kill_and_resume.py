"""A run that is killed again and again ends with the weights of one that was not.

STOMPP_KILLS=20 kills more often than a test's time allows.
"""

import os
import random
import signal
import time

import pytest
import torch
from processes import start_stompp

from stompp_kernels.training.checkpoint import LAST, load_checkpoint
from stompp_kernels.training.run_log import NAME

KILLS = int(os.environ.get("STOMPP_KILLS", "2"))
# The longer the run, the more of its parts the moments of the kills reach.
EPOCHS = max(2, KILLS)
FLAGS = ("--model", "small_resnet", "--dataset", "digits", "--batch-size", "64", "--epochs", str(EPOCHS))
CHANGES = ("model.options.widths=[8, 8, 8, 8]", "checkpoint_every=0.15", "evaluate_every=0.3", "log_every=4")


def start(folder):
    changes = [flag for change in CHANGES for flag in ("--set", change)]
    command = ["train", *FLAGS, *changes, "--device", "cpu", "--set", "diagnostics_every=5", "--resume", "--output"]
    return start_stompp(*command, folder, output=os.devnull)


def lines(folder):
    path = folder / NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at_random(folder, g):
    """Starts or resumes the run and kills it some moments after it has begun to write; whether it was still running."""
    before = lines(folder)
    run = start(folder)
    while run.exitcode is None and lines(folder) <= before:
        time.sleep(0.005)
    time.sleep(g.uniform(0, 0.6))
    run.kill()
    return status_of(run) == -signal.SIGKILL


def status_of(run):
    run.join()
    return run.exitcode


def same(a, b):
    """Equal values all through nested state."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    g = random.Random(KILLS)
    whole = start(tmp_path / "whole")
    kills = 0
    for _ in range(KILLS):
        kills += kill_at_random(tmp_path / "broken", g)
    assert status_of(start(tmp_path / "broken")) == 0
    assert status_of(whole) == 0
    assert kills >= KILLS / 2, "most kills must meet a run that has not ended"
    unbroken, broken = (load_checkpoint(tmp_path / name / LAST) for name in ("whole", "broken"))
    for part in ("step", "model", "optimizer", "progression", "diagnostics", "best", "accuracy"):
        assert same(unbroken[part], broken[part]), part
    files = {name: sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "broken")}
    assert files["whole"] == files["broken"], "nothing unfinished is left"
