"""The parent's end of a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from benchmarks.compare.trees import Tree
from benchmarks.compiled import ROOT

BLOCK_SECONDS = 0.02
ERROR_LINES = 5  # of a process that ended, that are shown


class SideError(Exception):
    """A worker's process ended; the message says how."""

    def __init__(self, side: Side, text: str) -> None:
        super().__init__(f"the process of {side.tree.name} {text}")
        self.side = side


class Side:
    """One version; its process starts with the first question, and again with the first after :meth:`close`."""

    def __init__(self, tree: Tree, threads: int, modules: list[str]) -> None:
        self.tree, self.threads, self.modules = tree, threads, modules
        self.implementation = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        # Threads that wait must sleep: else those of one side would take the cores of the other.
        variables = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": str(self.threads)}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare.worker", self.tree.folder, str(self.threads), *self.modules],
            cwd=ROOT,
            env={**os.environ, **variables, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.implementation = self.answer()["implementation"]

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """A worker's answer.

        Raises:
            SideError: its process ended instead.
        """
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # where it ended there is no answer, which says how
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        last = " ".join(self.errors.read().splitlines()[-ERROR_LINES:])
        self.close()
        raise SideError(self, f"ended with status {status}: {last}")

    def block(self) -> float:
        """Milliseconds of a call, the median of a block of them."""
        return self.ask("block", seconds=BLOCK_SECONDS)["ms"]

    def close(self) -> None:
        if self.process is None:
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        self.process = None
