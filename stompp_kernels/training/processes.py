"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stompp_kernels.device import choose_device
from stompp_kernels.signals import Stopped

__all__ = ["Processes", "Stopped", "start_processes"]


@dataclass(frozen=True)
class Processes:
    """The number and device of this process, and the number of processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sums values on this device over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def start_processes(device: str) -> Iterator[Processes]:
    """Joins the other processes where torchrun started several, for the length of the block.

    Args:
        device: "cpu", "cuda", or "auto": "cuda" where torch sees a GPU.

    Raises:
        ValueError: the device is none of these, or torch sees no GPU.
    """
    kind = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(kind)
        return
    where = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if kind.type == "cuda" else kind
    if kind.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        yield Processes(where, dist.get_rank(), dist.get_world_size())
    finally:
        # The group's end waits for gloo's threads with the interpreter's lock held, and a thread that still has to let
        # go of a tensor waits for that lock: both for ever.
        time.sleep(0.2)
        dist.destroy_process_group()
