"""A study on many machines, by Ray: it places the runs, and starts one again elsewhere when its machine is lost."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from stompp_kernels.exit_status import run
from stompp_kernels.training.folder_lock import wait_until_free
from stompp_kernels.training.recipe import Recipe, recipe_from_dict
from stompp_kernels.training.saved_run import OUTPUT
from stompp_kernels.training.trainer import train

RETRIES = 10  # of a run whose process or machine was lost; each goes on from its last checkpoint
LOCK_SECONDS = 120.0  # for a process whose machine's Ray was lost to notice it, end, and let go of the run's folder


class RayRun:
    """A run that Ray was given, with the methods of a process of this machine that ``ablate`` watches it by."""

    def __init__(self, ray: Any, task: Any, folder: Path) -> None:
        self._ray, self._task, self._folder = ray, task, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the run's exit status; None while it waits or goes on."""
        return self._status(0)

    def wait(self) -> int | None:
        """Returns the run's exit status once it has ended."""
        return self._status(None)

    def terminate(self) -> None:
        """Has the run write a checkpoint and end, as SIGINT does; one that has not begun never will."""
        self._ray.cancel(self._task, force=False)

    def kill(self) -> None:
        """Ends the run at once."""
        self._ray.cancel(self._task, force=True)

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._ray.wait([self._task], timeout=timeout)[0]:
            try:
                self.returncode = self._ray.get(self._task)
            except self._ray.exceptions.RayError as error:  # cancelled, lost too often, or without its package
                self.returncode = 1
                with open(self._folder / OUTPUT, "a") as output:
                    output.write(f"{error}\n")
        return self.returncode


class RayEngine:
    """Hands runs to a cluster.

    Args:
        ray: the module, connected.
        jobs: runs at a time on a machine, which share its processor cores and GPUs out between them.
        device: of every run.

    Raises:
        ValueError: the device is "cuda", and no machine has a GPU.
    """

    def __init__(self, ray: Any, jobs: int, device: str) -> None:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        gpus = [machine["GPU"] for machine in machines if machine.get("GPU")] if device != "cpu" else []
        if device == "cuda" and not gpus:
            raise ValueError("device must be 'cpu' or 'auto', for no machine of the cluster has a GPU, got 'cuda'")
        share = {"num_cpus": _share(min(machine["CPU"] for machine in machines), jobs)}
        if gpus:
            share["num_gpus"] = min(1.0, _share(min(gpus), jobs))
        # A process of its own for each run: what one leaves in torch does not reach the next.
        self._run = ray.remote(max_calls=1, max_retries=RETRIES, **share)(_run)
        self._ray, self._device = ray, device

    def start(self, recipe: Recipe, folder: Path) -> RayRun:
        """Hands a run to Ray; it begins when a machine has room for it."""
        task = self._run.remote(recipe.to_dict(), str(folder.resolve()), os.getcwd(), self._device)
        return RayRun(self._ray, task, folder)


@contextmanager
def ray_engine(jobs: int, device: str) -> Iterator[RayEngine]:
    """Connects to the cluster that RAY_ADDRESS names, or that runs on this machine, or starts one here.

    Its machines must have this package, and see the folder of the study and this process's working folder under the
    same paths. They get this process's variables STOMPP_*, which recipes read.

    Raises:
        ImportError: Ray is missing (the ``ray`` extra).
        ValueError: as by :class:`RayEngine`.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('engine "ray" needs Ray: pip install "stompp_kernels[ray]"') from error
    connect = not ray.is_initialized()
    if connect:
        variables = {name: value for name, value in os.environ.items() if name.startswith("STOMPP_")}
        ray.init(runtime_env={"env_vars": variables}, log_to_driver=False)
    try:
        yield RayEngine(ray, jobs, device)
    finally:
        if connect:
            ray.shutdown()


def _share(amount: float, jobs: int) -> float:
    """A run's part of a machine: a whole number, or a fraction of one, which Ray counts in steps of 1/10,000."""
    return amount // jobs or math.floor(1e4 * amount / jobs) / 1e4


def _run(values: dict[str, Any], folder_name: str, working_folder: str, device: str) -> int:
    """What a machine does: goes on with the run from its last checkpoint, and returns the exit status."""
    folder = Path(folder_name)

    def command() -> int:
        wait_until_free(folder, LOCK_SECONDS)
        train(recipe_from_dict(values), folder, device=device, resume=True)
        return 0

    os.chdir(working_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / OUTPUT, "a") as output, redirect_stdout(output), redirect_stderr(output):
        try:
            return run(command)
        except Exception:
            traceback.print_exc()
            return 1
