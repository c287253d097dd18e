"""The file that tells ninja what is compiled and linked, with which commands."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from .settings import ROOT


def shell(command: list[str]) -> str:
    """A command for ninja, whose own variables stay as they are."""
    return " ".join(word if word in ("$in", "$flags") else shlex.quote(word).replace("$", "$$") for word in command)


class NinjaFile:
    """Collects what is compiled and linked, with which commands.

    Paths are relative to ROOT: none of the build host's needs escaping.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lines = [f"builddir = {folder}"]
        self.built: set[str] = set()

    def rule(self, name: str, command: list[str], compiles: bool = True) -> None:
        arguments = "-MD -MF $out.d -c $in -o $out" if compiles else "-o $out"
        dependencies = ["  depfile = $out.d", "  deps = gcc"] if compiles else []
        description = f"  description = {name.upper()} {'$in' if compiles else '$out'}"
        self.lines += [f"rule {name}", f"  command = {shell(command)} {arguments}", *dependencies, description]

    def compile(self, rule: str, source: str, flags: Iterable[str] = ()) -> str:
        """The object of a source. The core's have one in common."""
        object_ = f"{self.folder}/{os.path.splitext(source)[0]}.o"
        if object_ not in self.built:
            self.lines += [f"build {object_}: {rule} {source}", *([f"  flags = {shell(list(flags))}"] if flags else [])]
            self.built.add(object_)
        return object_

    def link(self, rule: str, target: str, objects: Iterable[str]) -> None:
        self.lines.append(f"build {target}: {rule} {' '.join(objects)}")

    def make(self, target: str, command: list[str]) -> None:
        """A file that a command writes without a source of ours."""
        rule = Path(target).stem
        self.lines += [f"rule {rule}", f"  command = {shell(command)}", f"build {target}: {rule}"]

    def write(self) -> str:
        path = f"{self.folder}/build.ninja"
        (ROOT / self.folder).mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text("\n".join([*self.lines, ""]))
        return path
