"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's number and device, and the number of processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of values on this device, in place."""
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
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no NVIDIA GPU here")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(torch.device(kind))
        return
    where = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(where, dist.get_rank(), dist.get_world_size())
    finally:
        # The group's end waits for gloo's threads with the interpreter's lock held, and a thread that still has to let
        # go of a tensor waits for that lock: both for ever.
        time.sleep(0.2)
        dist.destroy_process_group()


class Stopped(Exception):
    """A signal ended the run after a checkpoint; ``number`` is the signal's."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}; --resume goes on from there")
        self.number = number


@contextmanager
def noting_signals() -> Iterator[list[int]]:
    """The numbers of SIGINT and SIGTERM that arrive in the block; a second SIGINT raises KeyboardInterrupt."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread can have handlers
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
