"""The machine code of CUDA kernels as cuobjdump prints it: which instructions a kernel's loops hold."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MULTIPLICATION = re.compile(r"(?:BMMA|BGMMA|IMMA)\.")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str

    def target(self) -> int | None:
        """Returns the address that a branch goes to."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands) if self.name.startswith("BRA") else None
        return int(found[1], 16) if found else None


@dataclass(frozen=True)
class Kernel:
    """A kernel: its mangled name and its instructions in the order of their addresses, without padding behind them."""

    name: str
    code: list[Instruction]

    def loops(self) -> Iterator[list[Instruction]]:
        """Yields what lies between each branch backwards and its target."""
        for end in self.code:
            start = end.target()
            if start is not None and start < end.address:
                yield [i for i in self.code if start <= i.address <= end.address]

    def main_loop(self) -> list[Instruction]:
        """Returns the shortest loop that holds as many multiplications as any other."""
        return min(self.loops(), key=lambda loop: (-multiplications(loop), len(loop)))

    def after_main_loop(self) -> list[Instruction]:
        """Returns the instructions behind the main loop."""
        last = self.main_loop()[-1].address
        return [i for i in self.code if i.address > last]


def multiplications(code: list[Instruction]) -> int:
    return sum(bool(MULTIPLICATION.match(i.name)) for i in code)


def share_of_moves(code: list[Instruction]) -> float:
    """Returns the share of copies between registers; the multiplier makes some of them."""
    return sum(i.name.split(".")[0] == "MOV" or i.name.startswith("IMAD.MOV") for i in code) / len(code)


def disassemble(tools: Path, objects: Path, architecture: str) -> list[Kernel]:
    """Returns the kernels of an object file; ``tools`` has cuobjdump and, beside it, the disassembler that it runs."""
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    command = [tools / "cuobjdump", "-sass", "-arch", f"sm_{architecture}", objects]
    text = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    return parse(text)


def parse(text: str) -> list[Kernel]:
    kernels = []
    for part in text.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        code = [Instruction(int(a, 16), n, operands) for a, n, operands in INSTRUCTION.findall(body)]
        while code and code[-1].name == "NOP":
            code.pop()
        if code and code[-1].name == "BRA" and code[-1].target() == code[-1].address:
            code.pop()  # what stands behind the last instruction, so that nothing runs on
        kernels.append(Kernel(name.strip(), code))
    return kernels
