"""Fixtures of all tests. Inputs are seeded and hypothesis is derandomized: a run repeats."""

import gc
import importlib.util
import os
import signal
import sys
import zlib
from collections import defaultdict
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


# Files of tests that take long start first, so that no process of pytest-xdist waits for another's last one.
LONG = (
    *("test_cuda_kernels", "test_core", "test_runtime", "test_cuda_library", "test_gpu_check", "test_cli_errors"),
    *("test_triton", "test_hf_kernel", "test_docs", "test_suite", "test_bench", "test_training", "test_misuse"),
    *("test_training_features", "test_compile", "test_torch_integration", "test_demo", "test_examples"),
)


def mark_sweeps(items):
    """Marks the variants of sweeps that `make test` leaves out as slow, the same ones in every run and process."""
    variants = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sweep") and not item.get_closest_marker("slow"):
            implementation = item.callspec.params.get("implementation")
            variants[item.path, item.originalname, implementation].append(item)
    for group in variants.values():
        (every,) = group[0].get_closest_marker("sweep").args
        group.sort(key=lambda item: zlib.crc32(item.name.encode()))  # no parameter alone decides
        for item in group[-(-len(group) // every) :]:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)  # before -m leaves out what is slow
def pytest_collection_modifyitems(items):
    mark_sweeps(items)
    items.sort(key=lambda item: item.path.stem not in LONG)
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


def pytest_collection_finish() -> None:
    """Keeps what is alive now, the tests and what they import, out of the many collections of garbage to come."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Lets the interpreter's end collect it."""
    gc.unfreeze()


def pytest_configure(config) -> None:
    """Lets commands that tests start receive the signals that nohup, or a background shell, has this process ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # pytest-xdist would begin with the files that have most tests, not with those that take longest.
    config.option.loadscopereorder = False
