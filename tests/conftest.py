"""Fixtures of all tests. Inputs are seeded and hypothesis is derandomized: a run repeats."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

if importlib.util.find_spec("stompp_kernels") is None:  # `pytest` in a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# What is not installed has its tests too. Last, so that an installed package is tested and not the checkout's.
sys.path.extend(str(Path(__file__).resolve().parent.parent / name) for name in ("scripts", ""))

# Before torch is imported. The processes of pytest-xdist share the cores: with all threads in each, small ops would
# wait for a core most of the time.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest
import torch

# Before the kernels are imported. With a GPU they run there, in the tests marked `gpu`.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import build_project
from helpers import IMPLEMENTATIONS, generator
from hypothesis import HealthCheck, settings

from stompp_kernels import native

# The implementation fixture holds no state that an example could leave behind.
settings.register_profile(
    "stompp",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("stompp")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, restore_threads):
    """The test runs once under each implementation that this machine has; its name.

    One thread: thousands of small ops on a busy machine wait for the pool most of the time.
    test_threads.py compares the counts.
    """
    torch.set_num_threads(1)
    with native.use_implementation(request.param):
        assert native.active_implementation() == request.param
        yield request.param
        assert native.active_implementation() == request.param


@pytest.fixture
def g():
    return generator(0)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project with our setup.py, and a torch and a compiler that only seem to be there."""
    return build_project.make_project(tmp_path, monkeypatch)


@pytest.fixture
def cuda_home(project):
    return build_project.make_cuda_home(project)


def pytest_configure() -> None:
    """Lets commands that tests start receive the signals that nohup, or a background shell, has this process ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
